"""Voices and manipulations of sound: repeatability, edges, and what must not give a fake away."""
import subprocess, sys
from importlib.util import find_spec
import numpy as np
import pytest
from cad_nb.core import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, stream
from cad_nb.forge import tamper, voice
from cad_nb.forge.tamper import Truth, cloned, dub, griffin_lim_clone, lpc_clone, matched, phase_vocoder_clone, pitch_track, shift, sound, spectra, splice
from cad_nb.forge.voice import CLOSURES, PHONEMES, VOWELS, block_times, espeak_symbol, filtered, lips, pulses, recorded, recording, say, speaker, tract_response, utterance, voiced_sound

CLONES = [griffin_lim_clone, lpc_clone, phase_vocoder_clone]


@pytest.fixture(scope="module")
def talks(): return [say(speaker(stream(5, "who", i)), 1.6, stream(5, i)) for i in range(6)]


@pytest.mark.parametrize("seed", range(5))
def test_speech_is_well_formed(seed):
    s = say(speaker(stream(seed)), 1.6, stream(seed, "s"))
    assert s.samples.dtype == np.float32 and s.samples.shape == (40*SAMPLES_PER_FRAME,) and np.isfinite(s.samples).all()
    assert np.abs(s.samples).max() <= 1 and .02 < s.samples.std() < .25 and abs(s.samples.mean()) < .01
    assert s.mouth.shape == (40, 3) and s.mouth.dtype == np.float32 and s.mouth.min() >= 0 and s.mouth.max() <= 1
    assert s.phonemes[0][1] == 0 and abs(s.phonemes[-1][2] - 1.6) < 1e-9
    assert all(b > a for _,a,b in s.phonemes) and all(p[2] == pytest.approx(q[1]) for p,q in zip(s.phonemes, s.phonemes[1:]))


def test_same_generator_same_bytes_also_in_another_process(talks):
    code = "import hashlib; from cad_nb.core import stream; from cad_nb.forge.voice import say, speaker; print(hashlib.sha256(say(speaker(stream(5,'who',0)), 1.6, stream(5,0)).samples.tobytes()).hexdigest())"
    import hashlib
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(talks[0].samples.tobytes()).hexdigest()


def test_phonemes_are_dense_and_within_their_lengths():
    said = [p for i in range(20) for p in utterance(4., speaker(stream(i)).rate, stream(i))[1:-1]]
    lengths = np.array([b - a for _,a,b in said])
    assert lengths.min() > .06 - 1e-9 and lengths.max() < .16 + 1e-9 and len(said) > 20*4*7
    assert np.mean([s == "_" for s,_,_ in said]) < .05
    assert {s for s,_,_ in said} == set(PHONEMES)


@pytest.mark.parametrize("i", range(8))
def test_lips_shut_for_closures_and_open_for_vowels(i):
    who, word = speaker(stream("lips", i)), [("a",0,.12), ("m",.12,.2), ("a",.2,.32), ("p",.32,.40), ("i",.4,.52), ("u",.52,.66), ("@",.66,.8)]
    m = lips(word, who, .8, stream(i))
    assert m[3:6,0].min() < .1 and m[7:11,0].min() < .1 and m[5:8,0].max() > .4
    assert m[10:14,1].max() > m[13:17,1].min() + .3 and m[13:17,2].max() > .5


@pytest.mark.parametrize("n", [1, 95, 96, 97, 640, 5000])
def test_filters_that_change_nothing_change_nothing(n):
    x = stream(n).normal(size=n).astype(np.float32)
    np.testing.assert_allclose(filtered((x, np.ones((len(block_times(n)), 385), np.float32))), x, atol=1e-5)


@pytest.mark.parametrize("nasal", [0., .6, 1.])
def test_the_tract_is_a_chain_of_resonances(nasal):
    "Written as one polynomial; here resonance by resonance, in double precision."
    formants, f = np.array([[760, 1250, 2550, 3600], [290, 2250, 3000, 3700], [270, 780, 2250, 3350]]), voice.FREQS.astype(float)
    for row,got in zip(formants, tract_response(formants, np.full(3, nasal, np.float32), 1.3)):
        want = (1 + nasal*((1 - (f/850)**2 + 1j*f*120/850**2)/(1 - (f/1100)**2 + 1j*f*300/1100**2) - 1))*(1 + (f/2800)**2)
        for hz in (*row, row[3]*1.28, row[3]*1.6): want = want/(1 - (f/hz)**2 + 1j*f*(1.3*(50 + .02*hz + .000012*hz**2) + 60*nasal)/hz**2)
        np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("f0", [75., 133.3, 300., 400.])
def test_pulses_are_band_limited_and_of_unit_power(f0):
    train, phase = pulses(np.full(SAMPLE_RATE, f0))
    assert np.isfinite(train).all() and train.std() == pytest.approx(1, abs=.02)
    power = np.abs(np.fft.rfft(train*np.hanning(len(train))))**2
    assert power[7700:].sum() < 1e-4*power.sum()


def test_speakers_differ_and_recordings_do_not_follow_the_speaker():
    many = [speaker(stream(i), "men") for i in range(100)]
    assert len({p.f0_hz for p in many}) == 100 and np.std([p.tract for p in many]) > .03
    assert np.mean([p.f0_hz for p in many]) < np.mean([speaker(stream(i), "women").f0_hz for i in range(100)]) - 50
    places = [recording(stream(i)) for i in range(200)]
    assert abs(np.mean([p.sign for p in places])) < .25 and np.std([p.level_db for p in places]) > 2


def test_silence_survives_a_recording():
    assert np.isfinite(recorded(np.zeros(16_000, np.float32), recording(stream(0)), stream(0))).all()


def test_a_clone_goes_through_the_same_room(talks):
    "Everything after the vocoder - room, microphone, noise, level - is that of the genuine take."
    asked = []
    def same(dry): asked.append(np.abs(dry).max()); return dry
    s = say(speaker(stream(5, "who", 0)), 1.6, stream(5, 0))
    assert np.array_equal(s.through(same), talks[0].samples) and .29 < asked[0] < .31
    fake = s.through(lambda dry: lpc_clone(dry, stream(1), .5))
    assert fake.shape == s.samples.shape and not np.array_equal(fake, talks[0].samples)


def test_lips_alone_cost_no_sound_and_sound_does_not_move_them(monkeypatch, talks):
    spoken = []
    monkeypatch.setattr(voice, "voiced_sound", lambda *a: spoken.append(1) or voiced_sound(*a))
    s = say(speaker(stream(5, "who", 0)), 1.6, stream(5, 0))
    assert np.array_equal(s.mouth, talks[0].mouth) and s.phonemes == talks[0].phonemes and not spoken
    assert np.array_equal(s.samples, talks[0].samples) and s.samples is s.samples and s.through(lambda dry: dry) is not None
    assert len(spoken) == 1


@pytest.mark.parametrize("clone", CLONES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("strength", [0., .5, 1.])
def test_clones_keep_length_loudness_mean_bands_and_time(clone, strength, talks):
    in_step = []
    for i,s in enumerate(talks):
        y = clone(s.samples, stream(i), strength)
        assert y.dtype == np.float32 and y.shape == s.samples.shape and np.isfinite(y).all() and np.abs(y).max() <= 1
        assert np.array_equal(y, clone(s.samples, stream(i), strength))
        assert y.std() == pytest.approx(s.samples.std(), rel=.02) and y.mean() == pytest.approx(s.samples.mean(), abs=1e-3)
        loud = lambda x: np.log(np.sqrt((x.reshape(-1, 640)**2).mean(1)) + 1e-3)
        at = [np.corrcoef(np.roll(loud(y), -k)[3:-3], loud(s.samples)[3:-3])[0,1] for k in range(-3, 4)]
        assert np.argmax(at) == 3; in_step.append(at[3])
    assert np.mean(in_step) > .85 and min(in_step) > .5   # a changed voice loses up to half in one utterance of a hundred


@pytest.mark.parametrize("clone", CLONES, ids=lambda c: c.__name__)
def test_clones_stand_odd_sounds(clone):
    for x in (np.zeros(16_000), np.ones(16_000)*.3, np.sin(np.arange(16_000)*.3)*.9, stream(0).normal(0, .2, 12_345).clip(-1, 1)):
        y = clone(x.astype(np.float32), stream(0), .5)
        assert y.shape == x.shape and np.isfinite(y).all()


def test_simple_numbers_do_not_tell_clones_from_genuine_speech():
    "Level, mean, peak, asymmetry and both ends, of clones made as the corpus makes them. A detector must need the spectrum."
    def numbers(x):
        z = (x - x.mean())/x.std()
        return [np.log(x.std()), x.mean()/x.std(), np.abs(z).max(), (z**4).mean(), (z**3).mean(), np.log(np.abs(z[:64]).mean()), np.log(np.abs(z[-64:]).mean())]
    real, fake = [], []
    for i in range(60):
        who, rng = speaker(stream(9, "who", i)), stream(9, i)
        speech, clone = say(who, 1.6, rng), griffin_lim_clone if i % 4 else lpc_clone
        if i % 2: real.append(numbers(speech.samples))
        else: fake.append(numbers(speech.through(lambda dry: clone(dry, stream(9, "c", i), .25))))
    for r,f in zip(np.array(real).T, np.array(fake).T):
        assert .25 < (r[:,None] < f[None]).mean() < .75  # area under the ROC curve; 30 against 30 strays by .15


def test_matching_repairs_level_band_and_offset(talks):
    x = talks[0].samples
    y = matched(np.convolve(x, [.5, .5], "same").astype(np.float32)*.2 + .1, x)
    assert y.std() == pytest.approx(x.std(), rel=.01) and y.mean() == pytest.approx(x.mean(), abs=1e-4)
    assert np.isfinite(matched(np.zeros_like(x), x)).all()


def test_a_clone_does_not_fade_at_its_ends(talks):
    y = cloned(talks[1].samples, lambda x: x*np.minimum(1, np.minimum(np.arange(len(x)), np.arange(len(x))[::-1])/800))
    np.testing.assert_allclose(y[:200], talks[1].samples[:200], atol=2e-3)


def test_spectra_and_back(talks):
    for n_fft in (512, 800, 1024):
        x = talks[0].samples
        np.testing.assert_allclose(sound(spectra(x, n_fft, n_fft//4), n_fft//4, len(x))[n_fft:-n_fft], x[n_fft:-n_fft], atol=1e-5)


def test_pitch_of_voices_is_found():
    found = []
    for i in range(12):
        who = speaker(stream(3, i))
        hz, voiced = pitch_track(say(who, 1.6, stream(3, "s", i)).samples)
        found.append(np.log2(np.median(hz[voiced > .9])/who.f0_hz))
    assert np.mean(np.abs(found) < .3) > .8, found


@pytest.mark.parametrize("n", [-12, -5, -1, 0, 1, 5, 12])
def test_shift_moves_by_whole_frames_and_fills_with_real_sound(n):
    take = np.arange(64*640, dtype=np.float32)
    y = shift(take, 40*640, n)
    assert y[0] == (12 - n)*640 and len(y) == 40*640 and (np.diff(y) == 1).all()
    with pytest.raises(ValueError): shift(take, 40*640, 13)


def test_dub_takes_level_and_nothing_else(talks):
    a, b = talks[0].samples, talks[1].samples
    y = dub(a, b)
    assert np.corrcoef(y, b)[0,1] > .999 and y.std() == pytest.approx(a.std(), rel=.02)
    with pytest.raises(ValueError, match="too short"): dub(a, b[:-1])


def test_splice_is_the_original_outside(talks):
    a, b = talks[0].samples, talks[1].samples
    y = splice(a, b, (.4, .8))
    assert np.array_equal(y[:6200], a[:6200]) and np.array_equal(y[13_000:], a[13_000:]) and np.allclose(y[6600:12_600], b[6600:12_600])
    assert np.array_equal(splice(a, b, (-1, 99)), b)


def test_truth_survives_json():
    import json
    for t in (Truth(True, False, False, "faceswap", span_s=(0., 1.6), detail=dict(a=[1, 2])), Truth(False, False, True, "timeshift", span_s=(0, 1.6), offset_frames=np.int64(-3)), Truth(False, False, False, "real")):
        assert Truth.from_json(json.dumps(t.to_json())) == t


def test_every_espeak_sound_has_a_shape_for_the_lips():
    assert {espeak_symbol(n) for n in "p b t d k g m n N f v T D s z S Z l r w j h tS dZ i: I eI E aI a A: 0 oU O: u: U V 3: @".split()} <= set(PHONEMES)
    assert espeak_symbol("p") in CLOSURES and espeak_symbol("'u:") in VOWELS


@pytest.mark.skipif(not find_spec("espeakng_loader"), reason="the extra cad_nb[espeak] is not installed")
def test_espeak_repeats_and_moves_the_lips():
    who = speaker(stream(1))
    a, b = (say(who, 2., stream(1, "e"), voice="espeak") for _ in range(2))
    assert np.array_equal(a.samples, b.samples) and a.samples.shape == (32_000,) and a.mouth.shape == (50, 3)
    assert len(a.phonemes) > 12 and a.mouth[:,0].std() > .1


@pytest.mark.skipif(bool(find_spec("espeakng_loader")), reason="espeak is installed")
def test_espeak_not_installed_says_what_to_do():
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cad_nb\[espeak\]'"): say(speaker(stream(0)), 1., stream(0), voice="espeak")
