"""Training speed: clips a second and peak memory of a step of each variant, and of the same full model without bfloat16, as a ratio in one run.

    python benchmarks/train.py [--steps 12] [--batch 32]
"""
import argparse, resource, time
from dataclasses import replace
from types import SimpleNamespace
import torch
from cad_nb.core import SAMPLES_PER_FRAME, pick_device, pick_precision, read_params, seed_all, typed
from cad_nb.learn import TrainParams, optimizer_of, step
from cad_nb.models.build import build
from cad_nb.models.cad import VARIANTS, ModelParams

ask = argparse.ArgumentParser(); ask.add_argument("--steps", type=int, default=12); ask.add_argument("--batch", type=int, default=32)
args, params = ask.parse_args(), read_params()
device, prepare = pick_device(params["device"]), params["prepare"]
model, train = typed(params["model"], ModelParams, "model"), typed(params["train"], TrainParams, "train")
train = replace(train, precision=pick_precision(train.precision, device))
B, K, T, P, Q = args.batch, params["batches"]["sharp"] or prepare["sharp"], prepare["frames"], prepare["face_px"], prepare["mouth_px"]
g = torch.Generator().manual_seed(0)
label = lambda: torch.randint(0, 2, (B,), generator=g).float().to(device)
batch = SimpleNamespace(face=torch.randint(0, 255, (B, K, P, P, 3), dtype=torch.uint8, generator=g).to(device), mouth=torch.randint(0, 255, (B, T, Q, Q), dtype=torch.uint8, generator=g).to(device),
    audio=torch.randn(B, T*SAMPLES_PER_FRAME, generator=g).to(device)*.1, y=label(), y_video=label(), y_audio=label(), y_sync=label(), has_video=torch.ones(B).bool().to(device), has_audio=torch.ones(B).bool().to(device), idx=torch.arange(B))

def rate(variant, precision):
    seed_all(0)
    net, how = build(replace(model, **VARIANTS[variant]), P, Q).to(device), replace(train, precision=precision)
    optimizer, best = optimizer_of(net, how), float("inf")
    for i in range(args.steps):
        start = time.perf_counter()
        step(net, batch, optimizer, how)   # reads its losses back, so the device is done when it returns
        if i > 1: best = min(best, time.perf_counter() - start)
    return B / best

print(f"{device}, {torch.get_num_threads()} threads, batches of {B}, best of {args.steps} steps")
plain = rate("cad", "float32")
for variant in VARIANTS: print(f"{variant:12} {rate(variant, train.precision):7.0f} clips/s")
print(f"{'cad float32':12} {plain:7.0f} clips/s;  {train.precision} is {rate('cad', train.precision)/plain:.2f} times as fast")
print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GiB")
