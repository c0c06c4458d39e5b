"""How fast does `prepare` read clips, and where does the time go? Rendered heads at the settings of params.yaml, or a corpus of your own.

    python benchmarks/prepare.py [--clips 24] [--size 256] [--workers 1 2] [--detector mtcnn]
    python benchmarks/prepare.py --layout fakeavceleb --root /path/to/FakeAVCeleb_v1.2 --clips 50
    python benchmarks/prepare.py --tenfold             # 10 times the files: how many times the time?
    python benchmarks/prepare.py --kill 20 --clips 60  # kill -9 of the whole job at random moments: are the bytes those of an undisturbed run?
"""
import argparse, cProfile, os, pstats, shutil, signal, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from cad_nb.core import SAMPLES_PER_FRAME, read_params, stream, typed
from cad_nb.data.corpora import read_corpus
from cad_nb.data.manifest import as_manifest, read_manifest, write_manifest
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


def tenfold(df, folders, p, out:Path):
    "Seconds for the clips, and for ten of each."
    (corpus, folder), = folders.items()
    copies = [f"{i}/{path}" for i in range(10) for path in df.path]
    for name in copies: (folder/name).parent.mkdir(exist_ok=True); os.link(folder/name.split("/", 1)[1], folder/name)
    took = []
    for part in (df, as_manifest([dict(corpus=corpus, path=name) for name in copies])):
        t = time.perf_counter(); prepare(part, folders, out/f"{len(part)}", p, progress=False); took.append(time.perf_counter() - t)
    print(f"  {len(df)} files {took[0]:.1f} s, {len(copies)} files {took[1]:.1f} s: {took[1]/took[0]:.2f} times the time, start of the workers included")


def contents(out:Path):
    "Every file of a run."
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()}


def survive(df, folders, p, out:Path, kills:int):
    "Kill the job and all its processes again and again, start it again, and compare."
    job = [sys.executable, __file__, "--job", str(write_manifest(out/"manifest.csv", df)), *next(([c, str(f)] for c,f in folders.items())), repr(p)]
    start = lambda to: subprocess.Popen([*job, str(out/to)], start_new_session=True)
    t = time.perf_counter(); assert start("undisturbed").wait() == 0
    took, whole, rng, killed, rounds = time.perf_counter() - t, contents(out/"undisturbed"), stream(0, "kill"), 0, 0
    while killed < kills or (out/"killed").exists():
        run = start("killed")
        try: ended = run.wait(rng.uniform(0, took) if killed < kills else None)
        except subprocess.TimeoutExpired: os.killpg(run.pid, signal.SIGKILL); run.wait(); killed += 1; continue
        assert ended == 0 and contents(out/"killed") == whole, "the bytes differ"
        shutil.rmtree(out/"killed"); rounds += 1
    print(f"  {len(whole)} files, undisturbed in {took:.1f} s; killed at {killed} random moments in {rounds} rounds, each of which ended with the same bytes")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--clips", type=int, default=24); ap.add_argument("--size", type=int, default=256); ap.add_argument("--frames", type=int, default=40)
    ap.add_argument("--workers", type=int, nargs="+", default=[1, 2]); ap.add_argument("--detector"); ap.add_argument("--layout"); ap.add_argument("--root"); ap.add_argument("--times", type=int, default=2)
    ap.add_argument("--tenfold", action="store_true"); ap.add_argument("--kill", type=int, default=0)
    a = ap.parse_args()
    p = typed(read_params()["prepare"], PrepareParams, "prepare")
    if a.detector: p = replace(p, detector=a.detector)
    with tempfile.TemporaryDirectory() as d:
        if a.layout:
            df = read_corpus(a.layout, a.root, a.layout)
            folders, df = {a.layout: df.attrs["folder"]}, df[df.status == "pending"].iloc[:a.clips].reset_index(drop=True)
        else: df, folders = heads(Path(d)/"heads", a.clips, a.size, a.frames)
        if a.tenfold: return tenfold(df, folders, p, Path(d))
        if a.kill: return survive(df, folders, replace(p, shard_clips=4), Path(d), a.kill)
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


if __name__ == "__main__":
    if sys.argv[1:2] != ["--job"]: main()
    else: manifest, corpus, folder, p, out = sys.argv[2:]; prepare(read_manifest(manifest), {corpus: folder}, out, eval(p), progress=False)
