"""Of two forged heads side by side, how often is the one chosen that is heard, and by how much?

    python benchmarks/speaker.py [--pairs 24] [--late 0 10]

Each file shows two people of the forge in places of their own; the sound is the speech of one of them. The other one either keeps the mouth shut (`still`) or talks too, unheard (`talks`). `--late` moves the sound by so many
frames of 40 ms: what is out of sync must be chosen all the same, since whether it is in sync is asked afterwards. Counted are files, by the face that most windows show, and windows.
"""
import argparse, tempfile
from collections import Counter
from pathlib import Path
import numpy as np, torch
from cad_nb.core import FPS, SAMPLES_PER_FRAME, stream
from cad_nb.forge.face import LOOKS, identity, render, scene
from cad_nb.forge.voice import say, speaker
from cad_nb.media.encode import write_clip
from cad_nb.media.faces import detector
from cad_nb.media.track import TrackOptions
from cad_nb.media.windows import read_windows

OPTIONS = TrackOptions(detect_every=5, min_face_px=32, face_px=96, mouth_px=32, max_s=600., min_frames=36)
T, FRAMES, SIZE = 36, 144, 128
SHUT = [.04, .5, .1]  # open, wide, round of a listener's mouth


def side_of(seed, listener): return int(stream(seed, "side", listener).integers(2))


def listening(rng):
    "A mouth that keeps shut and changes its expression slowly."
    mouth = np.tile(np.float32(SHUT), (FRAMES, 1))
    mouth[:,1] += .15*np.sin(np.arange(FRAMES)/20 + rng.uniform(0, 6))
    return mouth


def write(path, seed, listener="talks", late=0):
    "A file of two heads, of which one is heard."
    rng, speech, heads = stream(seed, "pair", listener), None, []
    speech, looks = say(speaker(rng), FRAMES/FPS, rng), sorted(LOOKS)
    for side in (0, 1):
        mouth = speech.mouth if side == side_of(seed, listener) else say(speaker(rng), FRAMES/FPS, rng).mouth if listener == "talks" else listening(rng)
        heads.append(render(identity(rng), scene(rng, FRAMES, looks[rng.integers(len(looks))]), mouth, size=SIZE).frames)
    return write_clip(path, np.concatenate(heads, 2), np.roll(speech.samples, late*SAMPLES_PER_FRAME), crf=int(rng.integers(20, 32)))


def windows_of(path, faces):
    "The side that each window shows, and the reading."
    reading = read_windows(path, faces, OPTIONS, T)
    return [(int(w.boxes[:,[0, 2]].mean() > SIZE), w.track) for w in reading if w.face is not None], reading


def chosen(path, faces):
    "The side that most windows show, and what is said of that face."
    shown, reading = windows_of(path, faces)
    (side, track), _ = Counter(shown).most_common(1)[0]
    return side, reading.tracks[track]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pairs", type=int, default=24); ap.add_argument("--late", type=int, nargs="+", default=[0, 10])
    a = ap.parse_args()
    torch.set_num_threads(1)
    faces = detector("mtcnn", min_face_px=32)
    print(f"{'the other one':14} {'sound late':>10}  files right  windows right  following of the chosen: median (5 % .. 95 %)")
    with tempfile.TemporaryDirectory() as d:
        for listener in ("still", "talks"):
            for late in a.late:
                files, windows, fit = [], [], []
                for seed in range(a.pairs):
                    shown, reading = windows_of(write(Path(d)/"pair.mp4", seed, listener, late), faces)
                    right = [side == side_of(seed, listener) for side,_ in shown]
                    files.append(np.mean(right) > .5); windows += right
                    fit.append(reading.tracks[Counter(shown).most_common(1)[0][0][1]].follows)
                low, middle, high = np.nanpercentile(fit, [5, 50, 95])
                print(f"{listener:14} {late*1000//FPS:7} ms  {sum(files):3} of {len(files):3}   {sum(windows):4} of {len(windows):4}   {middle:.2f} ({low:.2f} .. {high:.2f})", flush=True)


if __name__ == "__main__": main()
