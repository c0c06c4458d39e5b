"""How fast does `prepare` read clips, and where does the time go? Rendered heads at the settings of params.yaml, or a corpus of your own.

    python benchmarks/prepare.py [--clips 24] [--size 256] [--workers 1 2] [--detector mtcnn]
    python benchmarks/prepare.py --layout fakeavceleb --root /path/to/FakeAVCeleb_v1.2 --clips 50
    python benchmarks/prepare.py --clips 300           # long enough that the start of the workers counts for little
    python benchmarks/prepare.py --tenfold             # 10 times the files: how many times the time?
    python benchmarks/prepare.py --kill 20 --clips 60  # kill -9 of the whole job at random moments: are the bytes those of an undisturbed run?

Each number of workers has three figures: clips a second with the start of the workers, without it, and by processor time. The last one divides the clips by the processor seconds of this process
and of one worker, on average: what cores of their own would make of them. Other work on the machine blurs it less than the clock, but caches are shared: let several runs decide (--times).
"""
import argparse, cProfile, os, pstats, shutil, signal, subprocess, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np, psutil
from cad_nb.core import SAMPLES_PER_FRAME, read_params, stream, typed
from cad_nb.data.corpora import read_corpus
from cad_nb.data.manifest import as_manifest, read_manifest, write_manifest
from cad_nb.data.shards import PrepareParams, Worker, cut_clip, face_detector, prepare, workers
from cad_nb.media.encode import write_clip


DISTINCT = 60  # heads that are rendered; further clips are links to them


def heads(folder:Path, n:int, size:int, frames:int):
    "Clips of rendered heads with a tone, as a manifest and its folders."
    from cad_nb.forge.face import identity, render, scene
    for i in range(min(n, DISTINCT)):
        rng = stream(0, "benchmark", i)
        mouth = np.abs(np.sin(np.arange(frames)[:,None]/rng.uniform(2, 4, 3))).astype(np.float32)
        take = render(identity(rng), scene(rng, frames), mouth, size=size)
        write_clip(folder/f"{i:03}.mp4", take.frames, (.2*np.sin(np.arange(frames*SAMPLES_PER_FRAME)/7)).astype(np.float32))
    for i in range(DISTINCT, n): os.link(folder/f"{i % DISTINCT:03}.mp4", folder/f"{i:03}.mp4")
    return as_manifest([dict(corpus="heads", path=f"{i:03}.mp4") for i in range(n)]), {"heads": folder}


def started(p, n:int):
    "Seconds until n workers are ready."
    t = time.perf_counter()
    crew = workers(p, n)
    took = time.perf_counter() - t
    for w in crew: w.stop()
    return took


def measured(df, folders, p, out:Path):
    "Seconds of a run, processor seconds of this process and of a worker on average, and the manifest."
    spent, stop = [], Worker.stop
    def reckon(worker): spent.append(sum(psutil.Process(worker.process.pid).cpu_times()[:2])); stop(worker)
    Worker.stop = reckon
    try:
        t, own = time.perf_counter(), time.process_time()
        done = prepare(df, folders, out, p, progress=False)
        return time.perf_counter() - t, time.process_time() - own, sum(spent)/max(1, len(spent)), done
    finally: Worker.stop = stop


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
            first, again = (started(p, n), started(p, n)) if n > 1 else (0, 0)  # the server that they are forked from stays, so the second start is short
            runs = [measured(df, folders, replace(p, workers=n), Path(d)/f"{n}_{i}") for i in range(a.times)]
            (took, *_, done), (_, own, worker, _) = min(runs, key=lambda r: r[0]), min(runs, key=lambda r: r[1] + r[2])
            took -= again
            print(f"  {n} worker(s): {len(df)/(took + first):6.2f} clips/s, {len(df)/took:6.2f} without the start of {first:.1f} s, {len(df)/(own + worker):6.2f} by processor time "
                  f"(this process {own:.2f} s, a worker {worker:.2f} s); {seconds/took:5.1f} times real time, {(done.status == 'ok').mean():.0%} usable")
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
