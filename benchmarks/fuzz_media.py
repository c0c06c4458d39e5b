"""What happens to damaged and hostile files? Tiny files in many containers, mutated from a seed, each read in a process that is killed if it hangs.

    python benchmarks/fuzz_media.py [--n 2000] [--seed 0] [--hard-s 20]

Prints how often each status came out (a click is no speech, so a file that is hardly damaged is `no_speech`), the slowest files, the most memory, and every crash, hang or exception with the number that makes it again (`--only NUMBER`). Exits with 1 if there was one.
"""
import argparse, sys, tempfile, time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
import av, numpy as np
import clock
from cad_nb.media.faces import detector
from cad_nb.media.track import TrackOptions, read_clip
from cad_nb.media.windows import STATUSES, read_windows
from media import peak_mib

OPTIONS = TrackOptions(detect_every=5, min_face_px=8, face_px=16, mouth_px=8, max_s=30., min_frames=10)
KINDS = ["25 fps", "fragmented mp4", "sound 0.4 s late, mkv", "ffv1, flac, mkv", "vp8, opus", "vp9, opus", "mpeg4, mp3, avi", "full range, mjpeg", "B-frames, ts", "mpeg2, ac3, ts",
         "mpeg1, mp2, mpg", "interlaced, h264", "interlaced, mpeg2", "h264, aac, flv", "wmv2, wmav2, asf", "prores, pcm, mov", "hevc", "av1"]
WORDS = [bytes(4), b"\xff"*4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\xea\x60", b"\xea\x60\0\0", b"\0\0\0\1", b"moov", b"http"]  # 60,000 among them


def mutated(data:bytes, others:list, rng)->bytes:
    "A file with one kind of damage."
    data, kind, n = bytearray(data), rng.integers(8), len(data)
    spot = lambda most=n: int(rng.integers(most)) if rng.random() < .5 else int(most*rng.random()**4)  # headers stand at the beginning, mostly
    if kind == 0: return bytes(data[:spot()])
    if kind == 1:
        for _ in range(2**int(rng.integers(0, 9))): data[spot()] = int(rng.integers(256))
    if kind == 2: at = spot(); data[at:at+int(rng.integers(1, 400))] = bytes(int(rng.integers(1, 400)))
    if kind == 3:
        for _ in range(int(rng.integers(1, 6))): at = spot(); data[at:at+4] = WORDS[rng.integers(len(WORDS))]
    if kind == 4: a, b = spot(), spot(); size = int(rng.integers(1, 2000)); data[a:a] = data[b:b+size]
    if kind == 5: a = spot(); del data[a:a+int(rng.integers(1, 2000))]
    if kind == 6: other = others[rng.integers(len(others))]; data[spot():] = other[int(rng.integers(len(other))):]
    if kind == 7:
        for bit in rng.integers(0, 8*n, 2**int(rng.integers(0, 7))): data[bit//8] ^= 1 << bit % 8
    return bytes(data)


def seeds(folder)->list:  # of (suffix, bytes)
    "The files that are damaged."
    av.logging.set_level(av.logging.PANIC)
    made = [clock.write(folder, name)[0] for name in KINDS]
    return [(p.suffix, p.read_bytes()) for p in made]


def mutant(whole, seed:int, number:int):
    "The same damaged file for the same numbers."
    rng = np.random.default_rng([seed, number])
    suffix, data = whole[rng.integers(len(whole))]
    return suffix, mutated(data, [d for _,d in whole], rng)


def serve(pipe, limit_s):
    "Read files as they come, in a process of its own."
    import torch
    torch.set_num_threads(1); av.logging.set_level(av.logging.PANIC)
    none = detector("none")
    while (path := pipe.recv()) is not None:
        try:
            r = read_windows(path, none, OPTIONS, 16, limit_s=limit_s)
            for w in r: assert w.status in STATUSES and (w.face is None or w.face.shape == (16,16,16,3)) and (w.audio is None or np.isfinite(w.audio).all()), w.status
            clip = read_clip(path, none, OPTIONS)
            assert r.status in STATUSES and clip.status in STATUSES and 0 <= r.coverage <= 1 and (r.reason or r.status == "ok")
            answer = r.status
        except BaseException as e: answer = f"exception {type(e).__name__}: {str(e)[:200]}"
        pipe.send((answer, peak_mib()))


class Worker:
    "A process that reads files, started anew when one kills it or holds it up."
    def __init__(self, hard_s:float): self.hard_s, self.process = hard_s, None

    def read(self, path)->tuple:  # what became of it, s, MiB
        if self.process is None:
            context = get_context("spawn")
            self.pipe, end = context.Pipe()
            self.process = context.Process(target=serve, args=(end, self.hard_s/4), daemon=True); self.process.start(); end.close()
            self.pipe.send(Path("nowhere")); self.pipe.recv()  # it is up
        t = time.perf_counter(); self.pipe.send(path)
        try: answer, mib = self.pipe.recv() if self.pipe.poll(self.hard_s) else ("hang", 0.)
        except EOFError: answer, mib = "crash", 0.
        if answer in ("hang", "crash"): self.close()
        return answer, time.perf_counter() - t, mib

    def close(self):
        if self.process: self.process.kill(); self.process.join()
        self.process = None


def run(numbers, seed:int=0, hard_s:float=20.)->list:  # of (number, answer, s, MiB)
    "Read these mutants."
    done, worker = [], Worker(hard_s)
    with tempfile.TemporaryDirectory() as d:
        whole = seeds(d)
        try:
            for number in numbers:
                suffix, data = mutant(whole, seed, number)
                path = Path(d)/f"mutant{suffix}"; path.write_bytes(data)
                done.append((number, *worker.read(path)))
        finally: worker.close()
    return done


def bad(answer:str)->bool: return answer in ("hang", "crash") or answer.startswith("exception")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--n", type=int, default=2000); ap.add_argument("--seed", type=int, default=0); ap.add_argument("--hard-s", type=float, default=20.); ap.add_argument("--only", type=int)
    a = ap.parse_args()
    t = time.perf_counter()
    done = run([a.only] if a.only is not None else range(a.n), a.seed, a.hard_s)
    print(f"{len(done)} damaged files in {time.perf_counter() - t:.0f} s")
    for status,n in Counter(s if not bad(s) else s.split(":")[0] for _,s,_,_ in done).most_common(): print(f"  {status:16} {n:5}")
    print("slowest: " + ", ".join(f"number {n} {s:.1f} s ({status})" for n,status,s,_ in sorted(done, key=lambda r: -r[2])[:5]))
    print(f"most memory of the reading process: {max(m for *_,m in done):.0f} MiB")
    worst = [r for r in done if bad(r[1])]
    for n,status,s,_ in worst: print(f"number {n}: {status} after {s:.1f} s")
    sys.exit(bool(worst))


if __name__ == "__main__": main()
