"""How many training clips a second does the loader make, varied and unvaried, genuine or half of them forged on the fly, at the sizes of params.yaml or others?

    python benchmarks/loader.py [--face_px 64] [--mouth_px 32] [--sharp 6] [--frames 36] [--batch 32] [--clips 2048] [--threads 1]
"""
import argparse, json, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from safetensors.numpy import save_file
from cad_nb.core import SAMPLES_PER_FRAME, read_params, typed
from cad_nb.data.clips import BatchParams, Clips, augment, draw_epoch, stream, train_batches
from cad_nb.data.manifest import as_manifest
from cad_nb.data.pseudo import Forged, PseudoParams

def features(folder:Path, n:int, K:int, T:int, P:int, Q:int, per_shard:int=256):
    "Shards of random numbers, as `prepare` would lay them out."
    rng, rows = np.random.default_rng(0), []
    (folder/"toy").mkdir(parents=True)
    for s,at in enumerate(range(0, n, per_shard)):
        m = min(per_shard, n - at)
        ids = [f"toy/{at+i}.mp4" for i in range(m)]
        u8 = lambda *shape: rng.integers(0, 256, shape, np.uint8)
        save_file(dict(face=u8(m,K,P,P,3), mouth=u8(m,T,Q,Q), audio=rng.integers(-9000, 9000, (m, T*SAMPLES_PER_FRAME), np.int16), has_video=np.ones(m, np.uint8), has_audio=np.ones(m, np.uint8)), folder/"toy"/f"shard-{s:05}.safetensors")
        (folder/"toy"/f"shard-{s:05}.json").write_text(json.dumps(dict(windows=[dict(id=i, start_frame=1) for i in ids])))
        rows += [dict(id=id, corpus="toy", path=id[4:], method=("real", "rtvc", "faceswap", "wav2lip")[i % 4], status="ok", split="train", y=int(i % 4 > 0), y_video=int(i % 4 > 1), y_audio=int(i % 4 == 1), y_sync=0) for i,id in enumerate(ids)]
    return as_manifest(rows)


def rate(run, n:int, times:int)->float:
    "Clips per second of the fastest of some runs."
    best = float("inf")
    for _ in range(times):
        t = time.perf_counter(); run(); best = min(best, time.perf_counter() - t)
    return n/best


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    params = read_params()
    sizes = {k: params["prepare"][k] for k in ("face_px", "mouth_px", "sharp", "frames")}
    for name,default in {**sizes, "batch": 32, "clips": 2048, "threads": 1, "times": 3}.items(): ap.add_argument(f"--{name}", type=int, default=default)
    a = ap.parse_args()
    varied = replace(typed(params["batches"], BatchParams, "batches"), prefetch=0)
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as d:
        clips = Clips(d, features(Path(d), a.clips, a.sharp, a.frames, a.face_px, a.mouth_px))
        n = a.clips // a.batch * a.batch
        order = draw_epoch(clips.rows, n, varied, stream(0)).reshape(-1, a.batch)
        stored = [clips.batch(i) for i in order]
        print(f"{a.face_px} px faces x {a.sharp}, {a.mouth_px} px mouths x {a.frames}, batch {a.batch}, {a.threads} thread(s): clips per second")
        print(f"  stored        {rate(lambda: [clips.batch(i) for i in order], n, a.times):8.0f}")
        print(f"  varied        {rate(lambda: [augment(b, varied, stream(i)) for i,b in enumerate(stored)], n, a.times):8.0f}")
        print(f"  both          {rate(lambda: list(train_batches(clips, a.batch, 0, 0, varied)), n, a.times):8.0f}")
        print(f"  both, ahead   {rate(lambda: list(train_batches(clips, a.batch, 0, 0, replace(varied, prefetch=2))), n, a.times):8.0f}")
        pseudo, few = typed(params["pseudo"], PseudoParams, "pseudo"), replace(varied, balance="method", real=.5, epoch_clips=min(n, 16*a.batch))
        fresh = Forged(clips, pseudo, 0)
        epoch = lambda forged: list(train_batches(forged, a.batch, 0, 0, few))
        print(f"  forged, varied{rate(lambda: epoch(Forged(clips, pseudo, 0)), few.epoch_clips, a.times):8.0f}  half of the clips genuine, nothing kept from earlier epochs")
        epoch(fresh); print(f"  the same      {rate(lambda: epoch(fresh), few.epoch_clips, a.times):8.0f}  vocoded sounds at hand ({sum(v.nbytes for v in fresh.kept.values())/2**20:.0f} MB)")
        for kind in pseudo.kinds:
            one = Forged(clips, replace(pseudo, kinds=[kind]), 0)
            rows, begun = np.flatnonzero(one.rows.y == 1)[:a.batch], time.process_time()
            one.batch(rows); print(f"    {kind:20s}{1000*(time.process_time() - begun)/len(rows):6.1f} ms of a processor a clip")


if __name__ == "__main__": main()
