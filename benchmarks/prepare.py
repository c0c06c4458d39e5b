"""How fast does `prepare` read clips, and where does the time go? Rendered heads at the settings of params.yaml, or a corpus of your own.

    python benchmarks/prepare.py [--clips 24] [--size 256] [--workers 1 2] [--detector mtcnn]
    python benchmarks/prepare.py --layout fakeavceleb --root /path/to/FakeAVCeleb_v1.2 --clips 50
"""
import argparse, cProfile, pstats, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from cad_nb.core import SAMPLES_PER_FRAME, read_params, stream, typed
from cad_nb.data.corpora import read_corpus
from cad_nb.data.manifest import as_manifest
from cad_nb.data.shards import PrepareParams, cut_clip, face_detector, prepare
from cad_nb.media.encode import write_clip


def heads(folder:Path, n:int, size:int, frames:int):
    "Clips of rendered heads with a tone, as a manifest and its folders."
    from cad_nb.forge.face import identity, render, scene
    for i in range(n):
        rng = stream(0, "benchmark", i)
        mouth = np.abs(np.sin(np.arange(frames)[:,None]/rng.uniform(2, 4, 3))).astype(np.float32)
        take = render(identity(rng), scene(rng, frames), mouth, size=size)
        write_clip(folder/f"{i:03}.mp4", take.frames, (.2*np.sin(np.arange(frames*SAMPLES_PER_FRAME)/7)).astype(np.float32))
    return as_manifest([dict(corpus="heads", path=f"{i:03}.mp4") for i in range(n)]), {"heads": folder}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--clips", type=int, default=24); ap.add_argument("--size", type=int, default=256); ap.add_argument("--frames", type=int, default=40)
    ap.add_argument("--workers", type=int, nargs="+", default=[1, 2]); ap.add_argument("--detector"); ap.add_argument("--layout"); ap.add_argument("--root"); ap.add_argument("--times", type=int, default=2)
    a = ap.parse_args()
    p = typed(read_params()["prepare"], PrepareParams, "prepare")
    if a.detector: p = replace(p, detector=a.detector)
    with tempfile.TemporaryDirectory() as d:
        if a.layout:
            df = read_corpus(a.layout, a.root, a.layout)
            folders, df = {a.layout: df.attrs["folder"]}, df[df.status == "pending"].iloc[:a.clips].reset_index(drop=True)
        else: df, folders = heads(Path(d)/"heads", a.clips, a.size, a.frames)
        faces, profile = face_detector(p), cProfile.Profile()
        files = [Path(folders[c])/f for c,f in zip(df.corpus, df.path)]
        seconds = sum(cut_clip(f, faces, p).facts.get("duration_s", 0) for f in files[:1])*len(files)
        print(f"{len(df)} clips, about {seconds:.0f} s of video, detector {p.detector}")
        for n in a.workers:
            best = float("inf")
            for i in range(a.times):
                t = time.perf_counter(); done = prepare(df, folders, Path(d)/f"{n}_{i}", replace(p, workers=n), progress=False); best = min(best, time.perf_counter() - t)
            print(f"  {n} worker(s): {len(df)/best:6.2f} clips/s, {seconds/best:5.1f} times real time, {(done.status == 'ok').mean():.0%} usable")
        profile.enable()
        for f in files[:8]: cut_clip(f, faces, p)
        profile.disable()
        stats = pstats.Stats(profile)
        total = stats.total_tt
        for name in ("detect", "cut_track", "decode_audio", "watch"):
            took = max((v[3] for k,v in stats.stats.items() if k[2] == name), default=0)
            print(f"  {name:13} {took/total:5.0%} of the time")


if __name__ == "__main__": main()
