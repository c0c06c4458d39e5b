"""Embedded corpora: layout and quirks of the real ones, the same bytes however they are made, and a truth that is true."""
import csv, json, shutil
from collections import Counter
from dataclasses import replace
import av
import numpy as np
import pandas as pd
import pytest
import torch
from cad_nb.core import ParamsError, hash_of, stream, typed
from cad_nb.forge import corpus as C
from cad_nb.forge.corpus import CATEGORIES, FAKEAVCELEB, FaceForensicsParams, FakeAVCelebParams, ForgeParams, forge_corpora, make_clip, plan_faceforensics, plan_fakeavceleb, read_truths

SMALL = ForgeParams(size=64, frames=12, crf=[20, 26, 32], picture=[.2, .8], sound=[0., .6], partial=.3, voice="source_filter", workers=1,
    fakeavceleb=FakeAVCelebParams(identities=2, reals=2, fakes=1), faceforensics=FaceForensicsParams(pairs=3))


def fingerprints(folder): return {p.relative_to(folder).as_posix(): hash_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpora")
    forge_corpora(out, SMALL, 0)
    return out


@pytest.fixture(scope="module")
def plan(): return plan_fakeavceleb(SMALL, 0)


def job(plan, method, category=None, **params):
    j = next(j for j in plan if j.method == method and (category is None or j.path.startswith(CATEGORIES[category])))
    return replace(j, params=replace(j.params, **params))


def speech(person, take, j): return C.spoken(person, take, j.seed, j.params.frames, j.params.voice)


def genuine(j): return replace(j, path="genuine.mp4", method="real", recipe=FAKEAVCELEB["A", "real"], face_of=None, voice_of=None)


def test_layout_and_list_are_those_of_fakeavceleb(forged):
    root = forged/"FakeAVCeleb_v1.2"
    text = (root/"meta_data.csv").read_text()
    assert text.splitlines()[0] == "source,target1,target2,method,category,type,race,gender,path,"
    rows = list(csv.reader(text.splitlines()[1:]))
    assert {len(r) for r in rows} == {10} and all(r[9].startswith("FakeAVCeleb/") for r in rows)
    files = [r[9].removeprefix("FakeAVCeleb/") + "/" + r[8] for r in rows]
    assert set(files) == {p.relative_to(root).as_posix() for p in root.rglob("*.mp4")}
    twice = [f for f,n in Counter(files).items() if n == 2]
    assert len(twice) == len(files) - len(set(files)) == 1 and twice[0].startswith("FakeVideo-FakeAudio/")
    assert {r[3] for r,f in zip(rows, files) if f == twice[0]} == {"faceswap-wav2lip", "wav2lip"}
    for r in rows:
        assert r[5] == CATEGORIES[r[4]] and r[9].split("/")[1:] == [r[5], r[6], r[7], r[0]] and r[0].startswith("id") and len(r[0]) == 7
        assert "" not in r
    names = {r[8] for r in rows if r[4] != "A"}
    assert any("_wavtolip.mp4" in n for n in names) and not any("wav2lip" in n for n in names)
    assert sum(len(r[8]) == 9 for r in rows if r[4] == "B") == sum(len(r[8]) == 9 for r in rows if r[4] == "C") == 1  # bare names


def test_layout_is_that_of_faceforensics(forged):
    root = forged/"FaceForensics++"
    splits = {k: json.loads((root/f"splits/{k}.json").read_text()) for k in ("train", "val", "test")}
    pairs = sum(splits.values(), [])
    assert len(pairs) == 3 and all(splits.values()) and sorted(sum(pairs, [])) == [f"{i:03d}" for i in range(6)]
    fakes = {f"{a}_{b}.mp4" for p in pairs for a,b in (p, p[::-1])}
    for method in ("Deepfakes", "NeuralTextures"): assert {p.name for p in (root/f"manipulated_sequences/{method}/c23/videos").iterdir()} == fakes
    assert len(list((root/"original_sequences/youtube/c23/videos").iterdir())) == 6


def test_adapters_read_what_the_truth_says(forged):
    corpora = pytest.importorskip("cad_nb.data.corpora")
    for name,layout in (("FakeAVCeleb_v1.2", "fakeavceleb"), ("FaceForensics++", "faceforensics")):
        rows, (lines, _) = corpora.read_corpus("x", forged/name, layout), read_truths(forged/name)
        assert set(rows.path) == set(lines)
        for r in rows.itertuples():
            truth = lines[r.path]
            assert r.method == truth["method"] and r.identity_source == truth["detail"]["identity_source"]
            mask = corpora.read_mask(forged/name, r.path)
            assert (mask is not None) == truth["video"] and (mask is None or mask.shape == (12, 16, 16) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1})
            assert r.y == (truth["video"] or truth["audio"] or truth["sync"])
            for label,known in ((r.y_video, truth["video"]), (r.y_audio, truth["audio"]), (r.y_sync, truth["sync"])):
                if not pd.isna(label): assert label == known, r


def test_two_processes_give_the_same_bytes(forged, tmp_path):
    forge_corpora(tmp_path, replace(SMALL, workers=2), 0)
    assert fingerprints(tmp_path) == fingerprints(forged)


def test_what_a_process_remembers_changes_no_clip(plan):
    "Takes are remembered; whatever was made of one, it stays as it was."
    def forget(): C.spoken.cache_clear(); C.filmed.cache_clear()
    def made(j): frames, samples, crf, truth = make_clip(j); return frames.copy(), samples.copy(), truth.to_json()
    mine = [j for j in plan if j.person == plan[0].person]
    forget(); together = [made(j) for j in mine + mine[:1]]
    assert C.filmed.cache_info().misses == len({j.take for j in mine}) < len(mine)
    for j,(frames, samples, truth) in zip(mine + mine[:1], together):
        forget(); alone = made(j)
        assert np.array_equal(frames, alone[0]) and np.array_equal(samples, alone[1]) and truth == alone[2]
    with pytest.raises(ValueError, match="read-only"): make_clip(mine[0])[0][:] = 0


def test_stopped_half_way_it_goes_on_and_nothing_shows(forged, tmp_path, monkeypatch):
    made, real = [], C.make_clip
    def stops(j):
        if len(made) == 20: raise KeyboardInterrupt
        made.append(j.path); return real(j)
    monkeypatch.setattr(C, "make_clip", stops)
    with pytest.raises(KeyboardInterrupt): forge_corpora(tmp_path, SMALL, 0)
    assert not list(tmp_path.rglob("truth.jsonl")) and not list(tmp_path.rglob("*.part*.mp4"))
    np.random.seed(1); torch.manual_seed(1)                                     # global generators are of no influence
    monkeypatch.setattr(C, "make_clip", lambda j: made.append(j.path) or real(j))
    forge_corpora(tmp_path, SMALL, 0)
    assert len(made) == len(set(made)) == 42 and fingerprints(tmp_path) == fingerprints(forged)


def test_a_finished_corpus_is_left_as_it_is(forged):
    before = {p: p.stat().st_mtime_ns for p in forged.rglob("*") if p.is_file()}
    assert forge_corpora(forged, replace(SMALL, workers=3), 0) == {"FakeAVCeleb_v1.2": 0, "FaceForensics++": 0}
    assert {p: p.stat().st_mtime_ns for p in forged.rglob("*") if p.is_file()} == before


def test_another_seed_starts_over_and_a_strangers_folder_is_refused(forged, tmp_path):
    mine = replace(SMALL, fakeavceleb=FakeAVCelebParams(2, 1, 0), faceforensics=FaceForensicsParams(0))
    forge_corpora(tmp_path, mine, 0); first = fingerprints(tmp_path)
    forge_corpora(tmp_path, mine, 1); second = fingerprints(tmp_path)
    clips = lambda prints: {k for k in prints if k.endswith(".mp4")}
    assert len(clips(second)) == 2 and not clips(first) & clips(second)
    shutil.rmtree(tmp_path/"FaceForensics++"); (tmp_path/"FaceForensics++").mkdir(); (tmp_path/"FaceForensics++"/"thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="did not make it"): forge_corpora(tmp_path, mine, 2)
    assert (tmp_path/"FaceForensics++"/"thesis.txt").read_text() == "mine"


def test_an_error_names_the_clip(tmp_path, monkeypatch):
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(C, "write_clip", full)
    with pytest.raises(RuntimeError, match=r"RealVideo-RealAudio/.*\.mp4 \(real\) could not be made: .*No space"): forge_corpora(tmp_path, SMALL, 0)
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize("wrong, named", [(dict(size=65), "forge.size"), (dict(crf=[]), "forge.crf"), (dict(sound=[.5]), "forge.sound"), (dict(picture=[.9, .1]), "forge.picture"), (dict(partial=2.), "forge.partial"), (dict(fakeavceleb=FakeAVCelebParams(1, 1, 1)), "forge.fakeavceleb")])
def test_impossible_numbers_are_refused_before_anything_is_removed(forged, wrong, named):
    with pytest.raises(ParamsError, match=named): forge_corpora(forged, replace(SMALL, **wrong), 0)
    assert (forged/"FakeAVCeleb_v1.2"/"truth.jsonl").is_file()


def test_params_come_from_yaml():
    from dataclasses import asdict
    assert typed(asdict(SMALL), ForgeParams, "forge") == SMALL
    with pytest.raises(ParamsError, match="did you mean `forge.fakeavceleb.reals`"): typed({**asdict(SMALL), "fakeavceleb": dict(identities=2, real=1, fakes=1)}, ForgeParams, "forge")


def test_files_hold_both_streams_of_one_length_real_and_fake_alike(forged):
    for root,sound in ((forged/"FakeAVCeleb_v1.2", True), (forged/"FaceForensics++", False)):
        kinds = set()
        for p in root.rglob("*.mp4"):
            with av.open(str(p)) as f:
                v = f.streams.video[0]
                seconds = float(f.streams.audio[0].duration*f.streams.audio[0].time_base) if f.streams.audio else None
                kinds.add((v.codec.name, v.width, v.height, float(v.average_rate), sum(1 for _ in f.decode(v)), seconds))
        assert len(kinds) == 1 and next(iter(kinds))[:5] == ("h264", 64, 64, 25., 12), kinds
        assert (next(iter(kinds))[5] is not None) == sound and (not sound or abs(next(iter(kinds))[5] - 12/25) < .07)


def test_compression_does_not_know_the_label():
    "Drawn by its own stream: the same for a clip whatever was done to it."
    many = plan_fakeavceleb(replace(SMALL, fakeavceleb=FakeAVCelebParams(40, 4, 1)), 0)
    crf = lambda j: int(stream(j.seed, j.person.corpus, j.path, "crf").choice(j.params.crf))
    share = lambda jobs: np.bincount([SMALL.crf.index(crf(j)) for j in jobs], minlength=3)/len(jobs)
    assert np.abs(share([j for j in many if j.method == "real"]) - share([j for j in many if j.method != "real"])).max() < .15


@pytest.mark.parametrize("method, category", [("faceswap", "C"), ("fsgan", "C"), ("wav2lip", "C"), ("faceswap-wav2lip", "D"), ("fsgan-wav2lip", "D"), ("wav2lip", "D")])
def test_the_mask_holds_every_altered_pixel_and_the_rest_is_the_real_clip(plan, method, category):
    j = job(plan, method, category, partial=0.)
    fake, _, _, truth = make_clip(j)
    real, *_ = make_clip(genuine(j))
    big = np.kron(truth.mask, np.ones((4, 4), bool)).astype(bool)
    assert truth.mask.shape == (12, 16, 16) and truth.video and .02 < truth.mask.mean() < .6
    assert np.array_equal(fake[~big], real[~big]) and np.abs(fake[big].astype(int) - real[big]).mean() > 1


def test_part_of_a_clip_is_altered_in_its_span_only(plan):
    for method in ("faceswap", "rtvc", "lpc"):
        j = job(plan, method, partial=1., frames=25)
        fake, sound, _, truth = make_clip(j)
        real, clean, *_ = make_clip(genuine(j))
        a, b = (round(t*25) for t in truth.span_s)
        assert 10 <= b - a <= 20
        outside = np.r_[0:a, b:25]
        assert np.array_equal(fake[outside], real[outside])
        differs = (sound != clean).reshape(25, 640).any(1)
        differs[:2] = False                                                      # the silence at the beginning of every fake
        if method == "faceswap": assert truth.mask[outside].sum() == 0 and truth.mask[a:b].any((1, 2)).all() and not differs.any()
        else: assert set(np.flatnonzero(differs)) <= set(range(a - 1, b + 1)) and differs[max(a, 2):b].all() and truth.mask is None and np.array_equal(fake, real)


def test_shifted_sound_is_the_clips_own_moved_by_what_the_truth_says(plan):
    seen = []
    for k in range(6):
        j = replace(job(plan, "timeshift", frames=25), path=f"{k}.mp4")
        _, sound, _, truth = make_clip(j)
        n, own = truth.offset_frames, speech(j.person, j.take, j).samples
        start = (C.SPARE - n)*640
        assert np.array_equal(sound[640:], own[start + 640:start + 25*640]) and 1 <= abs(n) <= 12 and truth.sync and not truth.audio
        seen.append(n)
    assert min(seen) < 0 < max(seen)


def test_dubbed_sound_is_another_persons_and_driven_lips_follow_it(plan):
    for method in ("dubbing", "wav2lip"):
        j = job(plan, method, None if method == "dubbing" else "C", frames=25)
        _, sound, _, truth = make_clip(j)
        other = C.middle(speech(j.voice_of, j.voice_take, j).samples, 640)
        assert np.corrcoef(sound[800:], other[800:])[0,1] > .999 and j.voice_of.name == truth.detail["voice_target"] != j.person.name
        assert truth.sync == (method == "dubbing") and truth.video == (method == "wav2lip") and not truth.audio


def test_every_fake_and_no_real_begins_with_silence(plan):
    for j in plan[:12]:
        _, sound, _, truth = make_clip(replace(j, params=replace(j.params, size=32)))
        quiet = np.flatnonzero(sound)[0]/16
        assert (25 <= quiet <= 30.1) == (j.method != "real") and (quiet < 1) == (j.method == "real")


def test_shifts_of_five_frames_or_more_are_common():
    far = np.arange(1, C.SPARE + 1); w = np.where(far < 5, 1, 1.5)
    assert .7 < (w/w.sum())[4:].sum() < .8


def test_many_people_have_unique_paths_donors_of_their_gender_and_known_splits():
    many = plan_fakeavceleb(replace(SMALL, fakeavceleb=FakeAVCelebParams(50, 3, 4)), 0)
    assert len({j.path for j in many}) == len(many) == 50*(3 + 40)
    assert all(d is None or d.gender == j.person.gender and d.name != j.person.name for j in many for d in (j.face_of, j.voice_of))
    jobs, splits = plan_faceforensics(replace(SMALL, faceforensics=FaceForensicsParams(50)), 0)
    assert [len(splits[k]) for k in ("train", "val", "test")] == [36, 7, 7] and len(jobs) == 100 + 200
