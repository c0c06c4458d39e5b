"""Training speed: clips a second and peak memory of a step of each variant, and of the full model in bfloat16 and in float32, as a ratio in one run.
Memory is handled as in a stage (`cad_nb.run.stages.MEMORY`); with `--plain-memory`, as the C library does by itself.
With `--compile`, only the full model, plain and by turns through torch.compile: what that costs at the start, and what it brings.

    python benchmarks/train.py [--steps 12] [--batch 32] [--compile] [--plain-memory]
"""
import argparse, os, resource, sys, time
from dataclasses import replace
from types import SimpleNamespace
import torch
from cad_nb.core import SAMPLES_PER_FRAME, pick_device, pick_precision, read_params, seed_all, typed
from cad_nb.learn import TrainParams, optimizer_of, step
from cad_nb.models.build import build
from cad_nb.models.cad import VARIANTS, ModelParams
from cad_nb.run.stages import MEMORY

ask = argparse.ArgumentParser(); ask.add_argument("--steps", type=int, default=12); ask.add_argument("--batch", type=int, default=32); ask.add_argument("--compile", action="store_true"); ask.add_argument("--plain-memory", action="store_true")
args, params = ask.parse_args(), read_params()
if not args.plain_memory and "GLIBC_TUNABLES" not in os.environ: os.execve(sys.executable, [sys.executable, *sys.argv], dict(os.environ, GLIBC_TUNABLES=MEMORY))   # read when a process starts
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

def compiled():
    "Two models that take turns, step by step, so that whatever else the machine does slows down both."
    nets = {}
    for name in ("plain", "compiled"):
        seed_all(0); net = build(model, P, Q).to(device)
        if name == "compiled": net.compile()
        nets[name] = net, optimizer_of(net, train), []
    for i in range(args.steps + 2):
        for net, optimizer, times in nets.values():
            start = time.perf_counter(), time.process_time()
            step(net, batch, optimizer, train)
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    (plain, plain_cpu), (fast, fast_cpu) = (tuple(sorted(column)[len(column)//2] for column in zip(*times[2:])) for _, _, times in nets.values())
    print(f"first step of the compiled model {nets['compiled'][2][0][0]:.0f} s; then the median step: plain {B/plain:.0f} clips/s, compiled {B/fast:.0f} clips/s, {plain/fast:.2f} times as fast (by processor time {plain_cpu/fast_cpu:.2f} times)")

print(f"{device}, {torch.get_num_threads()} threads, batches of {B}, {args.steps} steps")
if args.compile: compiled(); raise SystemExit
for variant in VARIANTS: print(f"{variant:12} {rate(variant, train.precision):7.0f} clips/s in {train.precision}")
half, plain = rate("cad", "bfloat16"), rate("cad", "float32")
print(f"{'cad':12} {half:7.0f} clips/s in bfloat16, {plain:.0f} in float32: {half/plain:.2f} times as fast")
print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GiB")
