"""What do the encoders cost, and how near do they come to what the machine can do? Clips a second, peak memory, counted FLOPs, share of the measured ceiling.

    python benchmarks/encoders.py [--batch 8] [--steps 3] [--threads 1] [--precision both] [--only compact tiny base] [--works epoch "cached epoch"] [--layers]

`compact` is the model of params.yaml; `base` has networks of the sizes of CLIP ViT-B/16 and of the encoder of Whisper-small, `tiny` very small ones of the same kinds, both with random weights. Each line is measured in a
process of its own, so that its peak memory is its own. On a CPU the time is that of the process on one thread, which hardly notices what else runs there; on a GPU it is the clock's, after synchronising.

The ceiling is the best of some matrix products. `plain` is the share of the time that the same convolutions and products take when called one after the other, bare, in channels-last and in the same precision.
"""
import argparse, json, os, platform, resource, subprocess, sys, tempfile, time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ask.add_argument("--batch", type=int, default=8, help="clips a step")
ask.add_argument("--steps", type=int, default=3, help="the best of so many counts, after one to warm up")
ask.add_argument("--threads", type=int, default=1)
ask.add_argument("--precision", choices=["bfloat16", "float32", "both"], default="both")
ask.add_argument("--only", nargs="+", default=["compact", "tiny", "base"], choices=["compact", "tiny", "base"])
ask.add_argument("--works", nargs="+", help="of pictures, sound, forward, train, epoch, adapters, 'cached epoch': all that fit by default")
ask.add_argument("--layers", action="store_true", help="where the time goes, operator by operator")
ask.add_argument("--line", help=argparse.SUPPRESS)
args = ask.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from cad_nb.core import SAMPLES_PER_FRAME, hash_of, pick_device, read_params, seed_all, typed
from cad_nb.data.clips import BatchParams, Clips, train_batches
from cad_nb.data.manifest import as_manifest
from cad_nb.data.tokens import Recipe, TokenClips, TokensParams, make_tokens
from cad_nb.learn import TrainParams, optimizer_of, step
from cad_nb.models.build import build
from cad_nb.models.cad import ModelParams
from cad_nb.run.stages import MEMORY

torch.set_num_threads(args.threads)
params = read_params()
device, prepare = pick_device(params["device"]), params["prepare"]
gpu = device.type == "cuda"
clock = time.perf_counter if gpu or args.threads > 1 else time.process_time
SIZES = dict(tiny=dict(width=32, layers=2, heads=2, mlp=64, side=32, patch=8), base=dict(width=768, layers=12, heads=12, mlp=3072, side=224, patch=16))


def seconds(run, times:int)->float:
    "The shortest of some runs."
    best = float("inf")
    for i in range(times + 1):
        if gpu: torch.cuda.synchronize()
        begun = clock(); run()
        if gpu: torch.cuda.synchronize()
        if i or times == 0: best = min(best, clock() - begun)   # the first warms up
    return best


def networks(folder:Path, width, layers, heads, mlp, side, patch):
    "A CLIP and a Whisper of random weights, as files; without the halves that are not used."
    import transformers as t
    t.utils.logging.disable_progress_bar()
    if (folder/"whisper"/"model.safetensors").is_file(): return
    t.CLIPVisionModel(t.CLIPVisionConfig(hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads, image_size=side, patch_size=patch)).save_pretrained(folder/"clip")
    t.CLIPImageProcessor(size=dict(shortest_edge=side), crop_size=side).save_pretrained(folder/"clip")
    t.WhisperModel(t.WhisperConfig(d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=mlp, decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, vocab_size=9,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)).save_pretrained(folder/"whisper")
    t.WhisperFeatureExtractor().save_pretrained(folder/"whisper")


def stored_clips(folder:Path, n:int)->Clips:
    "Random clips, as `prepare` lays them out."
    from safetensors.numpy import save_file
    rng, K, T, P, Q = np.random.default_rng(0), prepare["sharp"], prepare["frames"], prepare["face_px"], prepare["mouth_px"]
    (folder/"toy").mkdir(parents=True); path = folder/"toy"/"shard-00000.safetensors"
    save_file(dict(face=rng.integers(0, 256, (n,K,P,P,3), np.uint8), mouth=rng.integers(0, 256, (n,T,Q,Q), np.uint8), audio=rng.integers(-9000, 9000, (n,T*SAMPLES_PER_FRAME), np.int16), has_video=np.ones(n, np.uint8), has_audio=np.ones(n, np.uint8)), path)
    ids = [f"toy/{i}.mp4" for i in range(n)]
    path.with_suffix(".json").write_text(json.dumps(dict(data=hash_of(path), windows=[dict(id=i, start_frame=1) for i in ids])))
    return Clips(folder, as_manifest([dict(id=id, corpus="toy", path=id[4:], method="real" if i % 2 else "swap", status="ok", split="train", y=1 - i % 2, y_video=1 - i % 2, y_audio=0, y_sync=0) for i, id in enumerate(ids)]))


class Calls(TorchDispatchMode):
    "Notes every operator that has a FLOP formula, with the shapes and types that it was given."
    def __init__(self): super().__init__(); self.seen = []
    def __torch_dispatch__(self, func, types, given=(), kwargs=None):
        if func._overloadpacket in flop_registry: self.seen.append((func, torch.utils._pytree.tree_map(lambda x: (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x, (list(given), kwargs or {}))))
        return func(*given, **kwargs or {})


def bare(calls)->tuple[float, Counter]:
    "Seconds of these operators alone, on contiguous and, for pictures, channels-last tensors; and by name."
    is_tensor = lambda x: isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], torch.dtype)
    def tensor(x):
        if not is_tensor(x): return x
        made = torch.randn(x[0], device=device).to(x[1])
        return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made
    by_name = Counter()
    for (func, key), n in Counter((f, repr(c)) for f, c in calls).items():
        call = next(c for f, c in calls if f == func and repr(c) == key)
        given, kwargs = torch.utils._pytree.tree_map(tensor, call, is_leaf=is_tensor)
        with torch.no_grad(): by_name[f"{func._overloadpacket.__name__}"] += n * seconds(lambda: func(*given, **kwargs), 3)
    return sum(by_name.values()), by_name


def ceiling(precision:str)->float:
    "FLOPs a second of the best of some square matrix products."
    dtype, best = getattr(torch, precision), 0.
    for n in ((2048, 4096, 8192) if gpu else (512, 1024, 1536)):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2*n**3/seconds(lambda: a @ b, 10 if gpu else 3))
    return best


def measured(run, clips:int, reach=None)->dict:
    "Everything about one kind of work. `run` does it once for so many clips."
    s = seconds(run, args.steps)
    rss = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter: run()   # fused attention has no formula on a CPU
    with sdpa_kernel(SDPBackend.MATH), Calls() as noted: run()
    plain, by_name = bare(noted.seen)
    found = dict(rate=clips/s, gib=rss/2**30, gflop=counter.get_total_flops()/clips/1e9, gflops=counter.get_total_flops()/s/1e9, plain=plain/s)
    if args.layers:
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * gpu
        with torch.profiler.profile(activities=kinds) as p: run()
        found["table"] = p.key_averages().table(sort_by="self_cuda_time_total" if gpu else "self_cpu_time_total", row_limit=14, max_name_column_width=50)
        found["bare"] = {k: v/s for k, v in by_name.most_common()}
    return found


def line(kind:str, work:str, precision:str, folder:Path)->dict:
    "One line of the table. kind: compact, tiny, base; work: forward, train, adapters, pictures, sound, epoch, cached epoch."
    B, how = args.batch, replace(typed(params["train"], TrainParams, "train"), precision=precision)
    model = typed(params["model"], ModelParams, "model")
    if kind != "compact": model = replace(model, encoder="pretrained", pretrained=replace(model.pretrained, video=str(folder/kind/"clip"), audio=str(folder/kind/"whisper"), lora_rank=8 if work == "adapters" else 0))
    import transformers; transformers.utils.logging.disable_progress_bar()
    seed_all(0)
    net = build(model, prepare["face_px"], prepare["mouth_px"]).to(device)
    batches = replace(typed(params["batches"], BatchParams, "batches"), prefetch=0)
    cast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with tempfile.TemporaryDirectory() as tmp:
        clips = stored_clips(Path(tmp)/"features", B)
        if work in ("train", "adapters", "epoch", "cached epoch"):
            if work == "cached epoch":
                recipe = Recipe("random", TokensParams(True, 2, "float16", precision, B), batches, 0)
                w, N = net.video.out[1].in_features, -(-prepare["frames"]*4//16)
                make_tokens(clips, Path(tmp)/"tokens", lambda b: dict(seen=torch.randn(len(b), prepare["sharp"], w), heard=torch.randn(len(b), N, net.audio.out[1].in_features)), recipe, progress=False)
                clips = TokenClips(clips, Path(tmp)/"tokens", recipe)
            optimizer = optimizer_of(net.train(), how)
            if "epoch" in work: run = lambda: [step(net, b.to(device), optimizer, how) for b in train_batches(clips, B, 0, 0, batches)]   # reading and varying included
            else:
                b = next(train_batches(clips, B, 0, 0, batches)).to(device)
                run = lambda: step(net, b, optimizer, how)
            return measured(run, B)
        b, net = clips.batch(range(B)).to(device), net.eval()
        view = net.views(b)
        runs = dict(forward=lambda: net.read(b), pictures=lambda: net.video.tokens(view.face), sound=lambda: net.audio.tokens(view.spec))
        with torch.no_grad(), cast: return measured(runs[work], B)


def machine()->str:
    "What this was measured on."
    if gpu: return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").is_file() else platform.processor()
    flags = set(next((l for l in open("/proc/cpuinfo") if l.startswith("flags")), "").split()) if Path("/proc/cpuinfo").is_file() else set()
    native = sorted(f for f in flags if f in ("avx512_bf16", "amx_bf16", "avx2", "avx512f"))
    return f"{name} ({', '.join(native)}), {args.threads} thread(s), torch {torch.__version__}; GPU: not measured"


def main():
    print(machine())
    print(f"batches of {args.batch} clips: {prepare['sharp']} faces of {prepare['face_px']} px ({params['batches']['sharp']} a step in training), {prepare['frames']} mouths of {prepare['mouth_px']} px, {prepare['frames']/25:.2f} s of sound\n")
    precisions = ["bfloat16", "float32"] if args.precision == "both" else [args.precision]
    tops = {p: ceiling(p) for p in precisions}
    for p, top in tops.items(): print(f"ceiling, matrix products in {p}: {top/1e9:,.0f} GFLOP/s")
    print(f"\n{'model':8} {'work':14} {'precision':9} {'clips/s':>9} {'GiB':>6} {'GFLOP/clip':>10} {'GFLOP/s':>9} {'ceiling':>8} {'plain':>6}")
    works = dict(compact=["pictures", "sound", "forward", "train", "epoch"], tiny=["epoch", "cached epoch"], base=["pictures", "sound", "forward", "epoch", "adapters", "cached epoch"])
    rates = {}
    with tempfile.TemporaryDirectory() as tmp:
        for kind in args.only:
            if kind in SIZES: seed_all(0); networks(Path(tmp)/kind, **SIZES[kind])
            for precision in precisions:
                for work in (w for w in works[kind] if w in (args.works or works[kind])):
                    words = [sys.executable, __file__, "--line", json.dumps([kind, work, precision, tmp]), "--batch", str(args.batch), "--steps", str(args.steps), "--threads", str(args.threads), *["--layers"]*args.layers]
                    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ, GLIBC_TUNABLES=os.environ.get("GLIBC_TUNABLES", MEMORY)))   # memory as in a stage
                    if done.returncode: sys.exit(done.stderr[-3000:])
                    x = json.loads(done.stdout.splitlines()[-1]); rates[kind, work, precision] = x["rate"]
                    print(f"{kind:8} {work:14} {precision:9} {x['rate']:9.2f} {x['gib']:6.2f} {x['gflop']:10.2f} {x['gflops']:9.1f} {x['gflops']*1e9/tops[precision]:8.0%} {x['plain']:6.0%}", flush=True)
                    if args.layers: print(x["table"], "\n  bare operators, share of the time:", {k: f"{v:.0%}" for k, v in x["bare"].items()})
    print()
    for kind, work, precision in rates:
        if work == "cached epoch" and (kind, "epoch", precision) in rates: print(f"{kind}, {precision}: an epoch on stored tokens is {rates[kind, work, precision]/rates[kind, 'epoch', precision]:.1f} times as fast as through the frozen networks")


if __name__ == "__main__":
    if args.line:
        kind, work, precision, folder = json.loads(args.line)
        print(json.dumps(line(kind, work, precision, Path(folder))))
    else: main()
