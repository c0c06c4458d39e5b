"""How much faster than real time is a file prepared on one core, how near is that to decoding alone, and how much memory does it take?

    python benchmarks/media.py [--seconds 20] [--detector mtcnn] [--long 7200] [--only-long]
    python benchmarks/media.py FOLDER

Without a folder the clip is a forged talking head, enlarged to 720p, before a background with camera noise, so that decoding costs what it does in life.
The naive way, in the same run: every picture to RGB, the detector on every fifth picture in batches, tracks, the file decoded a second time, and crops. `--long` also reads a file of
that many seconds at 1080p in a process of its own and prints its memory as it goes, and its peak.
"""
import argparse, resource, subprocess, sys, tempfile, time
from pathlib import Path
import av, numpy as np, torch
from cad_nb.core import SAMPLES_PER_FRAME, stream
from cad_nb.forge.face import identity, render, scene
from cad_nb.forge.voice import say, speaker
from cad_nb.media.audio import decode_audio
from cad_nb.media.encode import encode_clip
from cad_nb.media.faces import detector
from cad_nb.media.track import TrackOptions, cut_squares, read_clip
from cad_nb.media.video import read_frames, video_stream
from cad_nb.media.windows import read_windows

OPTIONS = TrackOptions(detect_every=5, min_face_px=32, face_px=96, mouth_px=32, max_s=1e9, min_frames=36)
T = 36  # ticks of a window


def peak_mib()->float:
    "The most memory that this process has held. What `getrusage` says a child has from its parent."
    try: return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))/1024
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def head(seconds:float, height:int, width:int, noise:float):
    "A forged head that talks, as pictures of that size, one at a time."
    rng = stream(0, "benchmark")
    n = round(seconds*25)
    mouth = np.abs(np.sin(np.arange(min(n, 100))[:,None]/rng.uniform(2, 4, 3))).astype(np.float32)
    take = render(identity(rng), scene(rng, min(n, 100)), mouth, size=256).frames
    side = height*3//4
    tile = 8 if noise else 120
    ground = np.kron(rng.integers(40, 200, (height//tile+1, width//tile+1, 3)), np.ones((tile, tile, 1)))[:height,:width]
    grain = rng.normal(0, noise, (8, height, width, 1)).astype(np.float32)
    for i in range(n):
        k = i % (2*len(take)); k = min(k, 2*len(take) - 1 - k)  # there and back
        frame = ground.astype(np.float32)
        big = torch.nn.functional.interpolate(torch.from_numpy(take[k]).permute(2,0,1)[None].float(), (side, side), mode="bilinear")[0].permute(1,2,0).numpy()
        frame[height-side:, (width-side)//2:(width-side)//2+side] = big
        yield (frame + grain[i % 8]).clip(0, 255).astype(np.uint8)


def voice(seconds:float): return np.resize(say(speaker(stream(0, "benchmark", "voice")), 8., stream(0, "benchmark", "words")).samples, round(seconds*25)*SAMPLES_PER_FRAME)


class OneByOne:
    "Pictures that are made when they are needed, in the shape of an array."
    def __init__(self, seconds, height, width, noise): self.args, self.shape = (seconds, height, width, noise), (round(seconds*25), height, width, 3)
    def __iter__(self): return head(*self.args)
    def __len__(self): return self.shape[0]


def write(path:Path, seconds:float, height:int, width:int, noise:float=3., crf:int=23):
    with av.open(str(path), "w", format="mp4") as out: encode_clip(out, OneByOne(seconds, height, width, noise), voice(seconds), crf, 64, 25, 16_000)
    return path


def repeated(short:Path, long:Path, seconds:float):
    "A file again and again, without encoding it anew. Half a tick between two of them keeps the time stamps in order."
    with av.open(str(short)) as c: each_s = c.duration/av.time_base + .02
    with av.open(str(long), "w") as out:
        with av.open(str(short)) as c: streams = {s.index: out.add_stream_from_template(s) for s in c.streams}
        for i in range(max(1, round(seconds/each_s))):
            with av.open(str(short)) as c:
                for p in c.demux():
                    if p.dts is None: continue
                    shift = round(i*each_s/float(p.time_base)); p.pts += shift; p.dts += shift; p.stream = streams[p.stream.index]; out.mux(p)
    return long


def decode_only(path:Path)->float:  # s of video
    with av.open(str(path)) as c:
        s = video_stream(c, path.name)
        for frame in c.decode(s): last = frame
        return last.time + 1/25


def naive(path:Path, faces):
    "What one would write first."
    at, boxes, waiting = [], [], []
    def detect():
        for t,f in zip([t for t,_ in waiting], faces.detect(np.stack([x for _,x in waiting]))):
            if len(f.boxes): at.append(t); boxes.append(f.boxes[0])
        waiting.clear()
    for n,(t,frame) in enumerate(read_frames(path)):
        if t % 5 == 0: waiting.append((t, frame))
        if len(waiting) == 8: detect()
    if waiting: detect()
    path_of = np.stack([np.interp(np.arange(t+1), at, b) for b in np.stack(boxes).T], 1)
    side = (path_of[:,2:] - path_of[:,:2]).max(1, keepdims=True)*1.3/2
    centre = (path_of[:,:2] + path_of[:,2:])/2
    crops = []
    for t,frame in read_frames(path):
        box = np.concatenate([centre[t] - side[t], centre[t] + side[t]])[None]
        crops.append((cut_squares([frame], box, 96), cut_squares([frame], box, 32, gray=True)))
    return crops, decode_audio(path)


def seconds_of(work, times:int=2)->float:
    best = float("inf")
    for _ in range(times): t = time.perf_counter(); work(); best = min(best, time.perf_counter() - t)
    return best


def peak(path:Path):
    "Peak memory and time of reading a file, in a process of its own."
    code = f"import runpy,sys; sys.argv=['media.py', '--peak-of', {str(path)!r}]; runpy.run_path({__file__!r}, run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], check=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", nargs="?", type=Path); ap.add_argument("--seconds", type=float, default=20); ap.add_argument("--detector", default="mtcnn")
    ap.add_argument("--long", type=float, default=0); ap.add_argument("--only-long", action="store_true"); ap.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    a = ap.parse_args()
    torch.set_num_threads(1)
    faces = detector(a.detector, min_face_px=32)
    if a.peak_of:
        before, t = peak_mib(), time.perf_counter()
        r = read_windows(a.peak_of, faces, OPTIONS, T)
        n, told = 0, 60
        for n,w in enumerate(r, 1):
            if (at := (w.start_frame + w.n_frames)/25) >= told: print(f"  after {at:6.0f} s of video: peak {peak_mib():.0f} MiB, {at/(time.perf_counter() - t):.1f} times real time", flush=True); told *= 2
        took = time.perf_counter() - t
        print(f"{r.duration_s:.0f} s read in {took:.0f} s ({r.duration_s/took:.1f} times real time), {n} windows, status {r.status}, coverage {r.coverage:.2f}; peak {peak_mib():.0f} MiB, {before:.0f} MiB of them before the first picture")
        return
    with tempfile.TemporaryDirectory() as d:
        files = sorted(p for p in a.folder.iterdir() if p.is_file()) if a.folder else [] if a.only_long else [write(Path(d)/"head_720p.mp4", a.seconds, 720, 1280)]
        if files: print(f"{'file':36} {'s':>5} {'decode':>7} {'windows':>8} {'clip':>7} {'naive':>7}   windows/decode  windows/naive   (times real time, one core)")
        for f in files:
            s = decode_only(f)
            fast = lambda: [None for _ in read_windows(f, faces, OPTIONS, T)]
            d_, w, c, n = (s/seconds_of(work) for work in (lambda: decode_only(f), fast, lambda: read_clip(f, faces, OPTIONS), lambda: naive(f, faces)))
            print(f"{f.name[:36]:36} {s:5.1f} {d_:7.1f} {w:8.1f} {c:7.1f} {n:7.1f}   {w/d_:14.2f}  {w/n:13.2f}")
        if a.long:
            short = write(Path(d)/"short_1080p.mp4", 8, 1080, 1920, noise=0)
            print("8 s at 1080p:", flush=True); peak(short)
            print(f"{a.long:.0f} s at 1080p:", flush=True); peak(repeated(short, Path(d)/"long_1080p.mp4", a.long))


if __name__ == "__main__": main()
