"""Do a flash and a click stay together, however a file is made? A corpus of one scene in many encodings, and what comes out of preparation.

    python benchmarks/clock.py

Each file shows a flash and sounds a click in the same instant, once a second. Printed is the largest distance between the two after `read_clip`, in ms (one frame is 40 ms), and how far both
lie from where they were put.
"""
import os, struct, tempfile
from fractions import Fraction
from pathlib import Path
import av, numpy as np, torch
from cad_nb.core import FPS, SAMPLE_RATE
from cad_nb.media.faces import detector
from cad_nb.media.track import TrackOptions, read_clip

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder talks
OPTIONS = TrackOptions(detect_every=25, min_face_px=16, face_px=16, mouth_px=8, max_s=60., min_frames=10)
SECONDS, TICK = 3.2, Fraction(1, 90_000)


def even(fps): return [Fraction(i)/fps for i in range(int(SECONDS*fps))]

def uneven(seed=0):
    "Times of a variable frame rate: 20 to 90 ms apart."
    steps = np.random.default_rng(seed).integers(20, 91, 200).cumsum()
    return [Fraction(0), *(Fraction(int(t), 1000) for t in steps if t < SECONDS*1000)]


def onsets(times):
    "When each flash begins: the first picture at or after each second."
    return [min(t for t in times if t >= k) for k in (1, 2, 3) if any(t >= k for t in times)]


def scene(times, h, w):
    "Pictures with a lamp that is on for a tenth of a second from each onset on. It is small: light everywhere at once would be a cut."
    for t in times:
        frame = np.full((h, w, 3), 40, np.uint8)
        if any(0 <= t - o < .1 for o in onsets(times)): frame[h*3//8:h*5//8, w*3//8:w*5//8] = 220
        yield frame


def clicks(times, rate):
    "The sound of it."
    s, x = np.arange(round(SECONDS*rate))/rate, np.zeros(round(SECONDS*rate), np.float32)
    for o in onsets(times): x += .8*np.sin(2*np.pi*1500*s)*((s >= float(o)) & (s < float(o) + .012))
    return x


def encode(path, vcodec="libx264", acodec="aac", times=None, rate=48_000, layout="stereo", pix="yuv420p", size=(48, 64), fmt=None, options=None, mux=None, pictures_late=0., sound_late=0., setup=None, fps=FPS):
    "Write a file; lateness in s moves the time stamps of a stream, and leaves out what would lie before zero of the other."
    times, (h, w) = times or even(fps), size
    with av.open(str(path), "w", format=fmt, options=mux or {}) as out:
        v = out.add_stream(vcodec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        v.width, v.height, v.pix_fmt, v.codec_context.thread_count = w, h, pix, 1
        v.codec_context.time_base = TICK if fmt != "mpeg" and vcodec not in ("mpeg4", "mpeg1video", "mpeg2video", "wmv2") else 1/Fraction(fps)
        if setup: setup(v)
        a = out.add_stream(acodec, rate=rate, layout=layout)
        a.bit_rate = 64_000*len(a.layout.channels)
        x, n = clicks(times, rate), len(a.layout.channels)
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.tile(x, (n, 1))), format="fltp", layout=layout)
        sound.sample_rate, sound.pts = rate, 0
        fifo = av.AudioFifo()
        for r in av.AudioResampler(format=a.format, layout=layout, rate=rate).resample(sound): fifo.write(r)
        block, at = a.codec_context.frame_size or 1024, 0
        def hear(until):
            nonlocal at
            while fifo.samples and at/rate < until:
                piece = fifo.read(min(block, fifo.samples)); piece.pts = at + round(sound_late*rate); piece.time_base = Fraction(1, rate); at += piece.samples
                out.mux(a.encode(piece))
        for t,rgb in zip(times, scene(times, h, w)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pix, threads=1)
            frame.time_base = v.codec_context.time_base; frame.pts = round((t + Fraction(pictures_late).limit_denominator(1000))/frame.time_base)
            out.mux(v.encode(frame)); hear(float(t) + .1)
        hear(float("inf")); out.mux(v.encode()); out.mux(a.encode())
    return path


def patched(path, mark, at, *numbers):
    "Numbers of 32 bits written into a file behind each mark; a function gets the old number."
    data, i = bytearray(path.read_bytes()), -1
    while (i := data.find(mark, i + 1)) >= 0:
        for k,n in enumerate(numbers):
            where = i + 4 + at + 4*k
            old, = struct.unpack(">i", data[where:where+4])
            data[where:where+4] = struct.pack(">i", n(old) if callable(n) else n)
    path.write_bytes(data)
    return path


def turned(path, **kw): return patched(encode(path, **kw), b"tkhd", 40, 0, 65536, 0, -65536, 0)

def later_start(path):
    "An edit list that leaves out the first 0.4 s of both streams. Their clocks are told apart by the sound's priming."
    encode(path, rate=48_000)
    with av.open(str(path)) as c: scale = {s.type: int(1/s.time_base) for s in c.streams}
    shift = iter((scale["video"], scale["audio"]))
    return patched(path, b"elst", 12, lambda old: old + round(.4*next(shift)))

def wide(v): v.codec_context.sample_aspect_ratio = 2

def full(v): v.codec_context.color_range = 2

def interlaced(v): v.codec_context.flags |= av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me


CASES = {
    **{f"{n} fps": dict(fps=f) for n,f in {"15": 15, "24": 24, "25": 25, "29.97": Fraction(30_000, 1001), "30": 30, "50": 50, "60": 60}.items()},
    "variable rate, mkv": dict(times=uneven(), ext="mkv"), "variable rate, mp4": dict(times=uneven(1)),
    "pictures 0.5 s late, mp4": dict(pictures_late=.5), "pictures 0.5 s late, mkv": dict(pictures_late=.5, ext="mkv"),
    "sound 0.4 s late, mp4": dict(sound_late=.4), "sound 0.4 s late, mkv": dict(sound_late=.4, ext="mkv", acodec="flac"), "both start at 5 s, ts": dict(sound_late=5., pictures_late=5., ext="ts"),
    "edit list leaves out 0.4 s": dict(make=later_start),
    "B-frames": dict(options={"bf": "4", "b-pyramid": "normal", "b_strategy": "0"}), "B-frames, ts": dict(options={"bf": "3", "b_strategy": "0"}, ext="ts"), "keyframes only": dict(options={"g": "1"}),
    **{f"{r} Hz": dict(rate=r) for r in (8000, 16_000, 22_050, 44_100, 48_000)},
    "mono": dict(layout="mono"), "5.1, aac": dict(layout="5.1"), "5.1, ac3, ts": dict(layout="5.1", acodec="ac3", ext="ts"),
    "a quarter turn": dict(make=turned), "wide pixels": dict(setup=wide), "odd size": dict(size=(47, 63), vcodec="ffv1", ext="mkv", acodec="flac"), "odd size, 4:4:4": dict(size=(47, 63), pix="yuv444p"),
    "10 bit, hevc": dict(vcodec="libx265", pix="yuv420p10le", options={"x265-params": "log-level=none:pools=1:frame-threads=1"}), "10 bit, ffv1": dict(vcodec="ffv1", pix="yuv422p10le", ext="mkv", acodec="flac"),
    "full range": dict(setup=full), "full range, mjpeg": dict(vcodec="mjpeg", pix="yuvj420p", ext="avi", acodec="pcm_s16le", setup=full),
    "interlaced, h264": dict(setup=interlaced, size=(64, 64)), "interlaced, mpeg2": dict(vcodec="mpeg2video", acodec="mp2", ext="mpg", fmt="mpeg", setup=interlaced, size=(64, 64)),
    "hevc": dict(vcodec="libx265", options={"x265-params": "log-level=none:pools=1:frame-threads=1"}), "vp8, opus": dict(vcodec="libvpx", acodec="libopus", ext="webm"),
    "vp9, opus": dict(vcodec="libvpx-vp9", acodec="libopus", ext="webm", options={"deadline": "realtime", "cpu-used": "8"}), "av1": dict(vcodec="libsvtav1", options={"preset": "8", "svtav1-params": "lp=1"}, ext="mkv", size=(64, 64)),
    "mpeg4, mp3, avi": dict(vcodec="mpeg4", acodec="libmp3lame", ext="avi"), "mpeg4, pcm, avi": dict(vcodec="mpeg4", acodec="pcm_s16le", ext="avi"), "mpeg1, mp2, mpg": dict(vcodec="mpeg1video", acodec="mp2", ext="mpg", fmt="mpeg"),
    "mpeg2, ac3, ts": dict(vcodec="mpeg2video", acodec="ac3", ext="ts"), "prores, pcm, mov": dict(vcodec="prores_ks", acodec="pcm_s16le", pix="yuv422p10le", ext="mov", size=(64, 64)),
    "h264, aac, flv": dict(ext="flv", rate=44_100), "wmv2, wmav2, asf": dict(vcodec="wmv2", acodec="wmav2", ext="wmv", fmt="asf", rate=44_100), "fragmented mp4": dict(mux={"movflags": "frag_keyframe+empty_moov"}),
    "h264, mp3, mkv": dict(acodec="libmp3lame", ext="mkv"), "ffv1, flac, mkv": dict(vcodec="ffv1", acodec="flac", ext="mkv"),
}


def write(folder, name):
    "The file of a case, and when its flashes begin on the clock of its first picture."
    case = dict(CASES[name])
    path = Path(folder)/f"{''.join(c if c.isalnum() else '_' for c in name)}.{case.pop('ext', 'mp4')}"
    make, times = case.pop("make", encode), case.get("times") or even(case.get("fps", FPS))
    make(path, **case)
    first = .4 if make is later_start else 0.
    late = case.get("sound_late", 0) - case.get("pictures_late", 0)   # by how much the clicks come after the flashes
    return path, [float(o) - first for o in onsets(times)], late


def measured(path, late=0.):
    "Flashes and clicks of a file after preparation, in s."
    clip = read_clip(path, detector("none"), OPTIONS)
    if clip.status != "ok" or clip.audio is None: return clip, [], []
    bright = clip.face[:,7:9,7:9].mean((1, 2, 3))
    lit = bright > (bright.min() + bright.max())/2
    flashes = [t/FPS for t in range(1, len(lit)) if lit[t] and not lit[t-1]]
    loud = np.flatnonzero(np.abs(clip.audio) > .35*np.abs(clip.audio).max())/SAMPLE_RATE
    return clip, flashes, [float(t) - late for i,t in enumerate(loud) if i == 0 or t - loud[i-1] > .5]


def distances(flashes, clicks, wanted):
    "Largest distance in s of flash and click, and of a flash from where it was put, over those that both can be found."
    pairs = [(f, min(clicks, key=lambda c: abs(c - f), default=9e9), min(wanted, key=lambda w: abs(w - f))) for f in flashes]
    pairs = [p for p in pairs if abs(p[1] - p[0]) < .5]
    if len(pairs) < 2: return float("inf"), float("inf")
    return max(abs(f - c) for f,c,_ in pairs), max(abs(f - w) for f,_,w in pairs)


def main():
    torch.set_num_threads(1)
    av.logging.set_level(av.logging.PANIC)
    worst = 0.
    print(f"{'file':28} {'status':8} {'rate in':>8}  flash to click   flash to truth")
    with tempfile.TemporaryDirectory() as d:
        for name in CASES:
            try: path, wanted, late = write(d, name)
            except (av.FFmpegError, ValueError) as e: print(f"{name:28} cannot be written here: {e}"); continue
            clip, flashes, heard = measured(path, late)
            apart, off = distances(flashes, heard, wanted)
            worst = max(worst, apart)
            print(f"{name:28} {clip.status:8} {clip.fps_in:8.2f}  {apart*1000:11.1f} ms {off*1000:13.1f} ms  {clip.reason}")
    print(f"the largest distance is {worst*1000:.1f} ms = {worst*FPS:.2f} frames")


if __name__ == "__main__": main()
