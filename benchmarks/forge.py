"""How many clips a second does the forge make on one core, and how many if each step were done the plain way?

    python benchmarks/forge.py [--size 128] [--frames 40] [--times 3] [--people 12]

The plain way: speech as a sum of sines, one by one, through filters that step through the sound piece by piece; pictures rendered and manipulated frame by frame.
The kinds of clips are sums of their steps, each clip by itself. The whole corpus is a smaller copy of the default one in `params.yaml`, both layouts and all methods in proportion;
there the clips of one person share what was spoken and filmed for another.
"""
import argparse, tempfile, time
from dataclasses import fields, replace
from pathlib import Path
import numpy as np
import torch
from scipy.signal import lfilter
from cad_nb.core import FPS, SAMPLE_RATE, read_params, stream, typed
from cad_nb.forge.corpus import SPARE, ForgeParams, forge_all, plan_faceforensics, plan_fakeavceleb
from cad_nb.forge.face import identity, render, scene
from cad_nb.forge.tamper import griffin_lim_clone, swap_face
from cad_nb.forge.voice import GRID_S, controls, lips, melody, recorded, recording, say, speaker, utterance
from cad_nb.media.encode import write_clip


def plain_speech(who, duration_s:float, rng)->np.ndarray:
    "The same synthesizer, written down as a textbook does: harmonics added up, resonators run over 5 ms at a time."
    phonemes = utterance(duration_s, who.rate, rng)
    t, s = np.arange(0, duration_s, GRID_S), np.arange(round(duration_s*SAMPLE_RATE))/SAMPLE_RATE
    c, f0 = controls(phonemes, who, t, rng), np.interp(s, t, melody(phonemes, who, t, rng))
    phase = 2*np.pi*np.cumsum(f0)/SAMPLE_RATE
    source = sum(np.cos(k*phase)*(k*f0 < 7600) for k in range(1, int(7600/f0.min()) + 1))*np.interp(s, t, c["voiced"]) + rng.normal(size=len(s))*np.interp(s, t, c["breath"] + c["hiss"])
    n, out, memory = round(GRID_S*SAMPLE_RATE), np.zeros(len(s)), [np.zeros(2) for _ in range(6)]
    for i,formants in enumerate(c["formants"]):
        y = source[i*n:(i+1)*n]
        for k,hz in enumerate([*formants, formants[3]*1.28, formants[3]*1.6]):
            r = np.exp(-np.pi*(50 + .02*hz)/SAMPLE_RATE); a = [1, -2*r*np.cos(2*np.pi*min(hz, 7800)/SAMPLE_RATE), r*r]
            y, memory[k] = lfilter([sum(a)], a, y, zi=memory[k])
        out[i*n:(i+1)*n] = y
    lips(phonemes, who, duration_s, rng)
    return recorded(out.astype(np.float32), recording(rng), rng)


def at_frame(where, t:int, T:int):
    "A scene of one frame."
    return replace(where, **{f.name: v[t:t+1] for f in fields(where) if isinstance(v := getattr(where, f.name), np.ndarray) and len(v) == T and v.shape != (3,)})


def fastest(run, times:int)->float:
    "Seconds of processor time of the fastest of some runs."
    best = float("inf")
    for _ in range(times):
        start = time.process_time(); run(); best = min(best, time.process_time() - start)
    return best


def smaller(params:ForgeParams, people:int)->ForgeParams:
    "The same corpora with fewer people, in proportion."
    pairs = round(people*params.faceforensics.pairs/params.fakeavceleb.identities)
    return replace(params, workers=1, fakeavceleb=replace(params.fakeavceleb, identities=people), faceforensics=replace(params.faceforensics, pairs=pairs))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,default in dict(size=128, frames=40, times=3, people=12).items(): ap.add_argument(f"--{name}", type=int, default=default)
    a = ap.parse_args()
    torch.set_num_threads(1)
    voice, T, long_s = speaker(stream(0)), a.frames, (a.frames + 2*SPARE)/FPS
    who, other, place = identity(stream(0, "a"), "men"), identity(stream(0, "b"), "men"), scene(stream(0, "s"), a.frames)
    clean, small = replace(place, noise=0.), a.size*3//8*2
    speech = say(voice, long_s, stream(0, "said"))
    mouth, clone = speech.mouth[SPARE:SPARE+T], lambda dry: griffin_lim_clone(dry, stream(2), .25)
    take, donor = render(who, place, mouth, a.size), render(other, clean, mouth, small)
    one = [at_frame(place, t, T) for t in range(T)]
    tasks = {
        "speech": (lambda: say(voice, long_s, stream(0, "said")).samples, lambda: plain_speech(voice, long_s, stream(0, "said"))),
        "picture": (lambda: render(who, place, mouth, a.size), lambda: [render(who, one[t], mouth[t:t+1], a.size) for t in range(T)]),
        "donor": (lambda: render(other, clean, mouth, small), lambda: [render(other, replace(one[t], noise=0.), mouth[t:t+1], a.size) for t in range(T)]),
        "face swap": (lambda: swap_face(take.frames, take.points, donor.frames, donor.points, .3, stream(1)),
                      lambda: [swap_face(take.frames[t:t+1], take.points[t:t+1], donor.frames[t:t+1], donor.points[t:t+1], .3, stream(1)) for t in range(T)]),
        "voice clone": (lambda: speech.through(clone), None),
    }
    with tempfile.TemporaryDirectory() as d:
        tasks["encoding"] = (lambda: write_clip(f"{d}/a.mp4", take.frames, speech.samples[:T*640]), None)
        print(f"{T} frames of {a.size} x {a.size} px and their sound, one core, ms of processor time (fastest of {a.times})\n\n{'step':14}{'here':>9}{'plain':>9}{'ratio':>8}")
        ours, plain = {}, {}
        for name,(fast,slow) in tasks.items():
            ours[name] = 1000*fastest(fast, a.times); plain[name] = 1000*fastest(slow, 1) if slow else ours[name]
            print(f"{name:14}{ours[name]:9.1f}{plain[name]:9.1f}{plain[name]/ours[name]:8.1f}")
        kinds = {"real clip": ("speech", "picture", "encoding"), "face swap": ("speech", "picture", "donor", "face swap", "encoding"), "cloned voice": ("speech", "voice clone", "picture", "encoding")}
        print(f"\n{'clips a second':14}{'here':>9}{'plain':>9}{'ratio':>8}")
        for name,steps in kinds.items():
            x, y = 1000/sum(ours[s] for s in steps), 1000/sum(plain[s] for s in steps)
            print(f"{name:14}{x:9.1f}{y:9.1f}{x/y:8.1f}")
        params = smaller(replace(typed(read_params(Path(__file__).parent.parent/"params.yaml")["forge"], ForgeParams, "forge"), size=a.size, frames=a.frames), a.people)
        jobs = [(job, Path(d)/job.person.corpus) for job in plan_fakeavceleb(params, 0) + plan_faceforensics(params, 0)[0]]
        print(f"{'whole corpus':14}{len(jobs)/fastest(lambda: forge_all(jobs, 1), 1):9.1f}   ({len(jobs)} clips, {np.mean([job.method == 'real' for job,_ in jobs]):.0%} of them real)")


if __name__ == "__main__": main()
