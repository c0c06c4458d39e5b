"""How much faster than real time is a minute of 720p judged by `cad score`, and how much memory does it take?

    python benchmarks/score.py [--seconds 60] [--model FOLDER] [--threads 2]

The clip is the forged head of `media.py`. Without `--model` the weights are random, of the size that params.yaml says: they take the same time as trained ones. Reading and judging are timed apart from the page, since
`--no-page` leaves it out; loading is timed apart from both. CPU seconds stand beside those of the clock: on a shared machine only they mean anything. Peak memory is that of the process, torch and FFmpeg included.
"""
import argparse, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from cad_nb.core import hash_of, project_root, read_params, seed_all, typed
from cad_nb.judge.calibration import MODES, VIEWS, Card, platt, write_card
from cad_nb.learn import save_checkpoint
from cad_nb.models.build import build
from cad_nb.models.cad import EVIDENCE, ModelParams
from cad_nb.run.score import load_judge, read_and_judge, score_file, write_results
from media import decode_only, peak_mib, repeated, write


def random_checkpoint(folder:Path)->Path:
    "Untrained weights with a card that claims a threshold, and genuine clips to compare with."
    params = read_params(project_root()/"params.yaml")
    p = params["prepare"]
    seed_all(0)
    save_checkpoint(folder, build(typed(params["model"], ModelParams, "model"), p["face_px"], p["mouth_px"]), dict(face_px=p["face_px"], mouth_px=p["mouth_px"]))
    tells, rng = platt([0, 1]*8, np.arange(16)) | dict(tells=True), np.random.default_rng(0)
    known = dict(face=rng.integers(0, 255, (4, p["sharp"], p["face_px"], p["face_px"], 3), dtype=np.uint8), mouth=rng.integers(0, 255, (4, p["frames"], p["mouth_px"], p["mouth_px"]), dtype=np.uint8), audio=rng.normal(0, .1, (4, p["frames"]*640)).astype(np.float32))
    write_card(folder, Card(hash_of(folder/"model.safetensors"), dict(corpora=["random"], embedded=True), p, params["train"]["precision"], dict.fromkeys(MODES, .5), {m: dict.fromkeys(EVIDENCE, tells) for m in MODES}, dict.fromkeys(MODES), dict.fromkeys(VIEWS), known))
    return folder


class Watch:
    "Seconds of the clock and of all cores."
    def __enter__(self): self.began = time.perf_counter(), time.process_time(); return self
    def __exit__(self, *_): self.wall, self.cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
    def rates(self, s): return f"{s/self.wall:5.1f} times real time ({self.wall:5.1f} s of the clock, {self.cpu:5.1f} s of CPU: {s/self.cpu:.1f})"


def judge_one(path:Path, model:Path, out:Path, threads:int):
    "What one process takes for it."
    torch.set_num_threads(threads)
    with Watch() as load: judge = load_judge(model, "cpu")
    print(f"  {'model loaded':28} {load.wall:.1f} s of the clock, {load.cpu:.1f} s of CPU; {peak_mib():.0f} MiB")
    with Watch() as plain: s = decode_only(path)
    with Watch() as read: judged = score_file(path, judge, force=True)
    after_reading = peak_mib()
    with Watch() as page: write_results(judged, judge, path, out)
    print(f"  {'decoding alone':28} {plain.rates(s)}\n  {'reading and judging':28} {read.rates(s)}; peak {after_reading:.0f} MiB\n  {'its page':28} {page.wall:5.1f} s of the clock, {page.cpu:5.1f} s of CPU; peak {peak_mib():.0f} MiB")
    read.wall += page.wall; read.cpu += page.cpu
    print(f"  {'both':28} {read.rates(s)}; verdict {judged.record['verdict']}, coverage {judged.record['coverage']:.2f}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seconds", type=float, default=60); ap.add_argument("--model", type=Path); ap.add_argument("--threads", type=int, default=torch.get_num_threads()); ap.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as d:
        if a.file: return judge_one(a.file, a.model, Path(d), a.threads)
        model = a.model or random_checkpoint(Path(d)/"model")
        clip = repeated(write(Path(d)/"short.mp4", 6, 720, 1280), Path(d)/"head_720p.mp4", a.seconds)
        print(f"{a.seconds:.0f} s at 720p, {a.threads} threads", flush=True)
        subprocess.run([sys.executable, __file__, "--file", str(clip), "--model", str(model), "--threads", str(a.threads)], check=True)


if __name__ == "__main__": main()
