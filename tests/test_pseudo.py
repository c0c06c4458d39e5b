"""Pseudo-fakes: what is done to a clip is what its labels say, and nothing else of it changes; genuine clips stay as stored, and no fake is forged again."""
import json
from dataclasses import fields, replace
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save_file
from cad_nb.core import ParamsError, SAMPLES_PER_FRAME, read_params, stream, typed
from cad_nb.data.clips import Batch, BatchParams, Clips, eval_batches, train_batches
from cad_nb.data.manifest import LABELS, as_manifest
from cad_nb.data.pseudo import PARTS, VOCODERS, Forged, PseudoParams, blend_of, blended, crop_points, instants, lips_of, moved, training_clips, truth_of
from cad_nb.data.shards import sharp_frames
from cad_nb.forge.face import grain
from cad_nb.forge.tamper import SHAPES, blend_in
from cad_nb.forge.voice import say, speaker
from cad_nb.judge.calibration import make_card
from cad_nb.judge.evaluate import ALL, validation_auc
from cad_nb.judge.real_only import RealOnlyParams, beside, in_words
from cad_nb.learn import TrainParams, fit, load_checkpoint
from cad_nb.models.build import build
from cad_nb.models.cad import ModelParams
from conftest import ROOT

T, K, P, Q = 18, 3, 64, 24
COMBINED = ["self_blend+vocoded", "mouth+vocoded", "dubbed+vocoded", "self_blend+shifted", "self_blend+dubbed"]
PARAMS = PseudoParams(kinds=[*PARTS, *COMBINED], picture=[.3, 1.], sound=[.3, 1.], vocoders=["griffin_lim", "phase_vocoder"], versions=2, cache_mb=8, shift=[3, 6])
PLAIN = BatchParams(balance="method", real=.5, epoch_clips=0, flip=0., brightness=0., contrast=0., blur=0., noise=0., gain_db=0., tilt=0., audio_noise=0., drop_video=0., drop_audio=0., prefetch=0, sharp=0)


def corpus(folder, name, labels, video=True, audio=True):
    "A shard of textures that drift, with speech; two clips a person."
    n, ids = len(labels), [f"{name}/{i}.mp4" for i in range(len(labels))]
    texture = lambda i, size, k: np.stack([((grain(stream(name, i, j), size, 8)*40 + 128).clamp(0, 255)).byte().numpy() for j in range(k)])
    face = np.stack([np.stack([texture((i, k), P, 3).transpose(1, 2, 0) for k in range(K)]) for i in range(n)])*np.uint8(video)
    mouth = np.stack([texture((i, "mouth"), Q, T) for i in range(n)])*np.uint8(video)
    sound = np.stack([np.round(32767*say(speaker(stream(name, i//2)), T/25, stream(name, i)).samples).astype(np.int16) for i in range(n)])*np.int16(audio)
    (folder/name).mkdir()
    save_file(dict(face=face, mouth=mouth, audio=sound, has_video=np.full(n, video, np.uint8), has_audio=np.full(n, audio, np.uint8)), folder/name/"shard-00000.safetensors")
    (folder/name/"shard-00000.json").write_text(json.dumps(dict(windows=[dict(id=i, start_frame=1) for i in ids])))
    known = lambda y, there: y if there else None
    return [dict(id=id, corpus=name, path=id.split("/")[1], identity_source=f"{name}{i//2}", method="real" if y == 0 else "faceswap", status="ok", split="train", y=y, y_video=known(y, video), y_audio=known(0 if y is not None else None, audio), y_sync=known(0 if y is not None else None, audio and video))
            for i,(id,y) in enumerate(zip(ids, labels))]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "Talking heads (six genuine clips, two fakes, one of which nothing is known), silent ones, and voices alone."
    folder = tmp_path_factory.mktemp("features")
    rows = corpus(folder, "talk", [0]*6 + [1, 1, None]) + corpus(folder, "silent", [0, 0, 1], audio=False) + corpus(folder, "radio", [0, 0], video=False)
    return folder, as_manifest(rows)


@pytest.fixture(scope="module")
def clips(stored): return Clips(*stored, "train")


@pytest.fixture(scope="module")
def forged(clips): return Forged(clips, PARAMS, 0)


def rows_of(forged, kind, corpus="talk"): return forged.rows.index[(forged.rows.method == kind) & (forged.rows.corpus == corpus)].to_numpy()


def original(forged, b): return forged.clips.batch(forged.source[b.idx.numpy()])


def same(a, b): return all(torch.equal(getattr(a, f.name).nan_to_num(-1), getattr(b, f.name).nan_to_num(-1)) for f in fields(Batch))


# labels --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", PARAMS.kinds)
def test_labels_say_what_was_done(forged, kind):
    "Whatever a label calls genuine has the bytes that were stored, and whatever it calls false has not."
    b = forged.batch(rows_of(forged, kind)); was, parts = original(forged, b), kind.split("+")
    assert len(b) == 6 and (b.y == 1).all()
    for i in range(len(b)):
        pixels = not torch.equal(b.face[i], was.face[i])
        assert pixels == bool(b.y_video[i]) == bool({"self_blend", "mouth"} & set(parts))
        frames = {m.tobytes() for m in was.mouth[i].numpy()}
        if not b.y_video[i]: assert all(m.tobytes() in frames for m in b.mouth[i].numpy()), "a picture that is called genuine holds only frames of the clip"
        if "vocoded" not in parts and not {"dubbed", "shifted"} & set(parts): assert torch.equal(b.audio[i], was.audio[i])
        assert bool(b.y_audio[i]) == ("vocoded" in parts)
        apart = not torch.equal(b.mouth[i], was.mouth[i]) or not torch.equal(b.audio[i], was.audio[i])
        assert bool(b.y_sync[i]) == bool({"mouth", "shifted", "dubbed"} & set(parts)) and apart


def test_a_dub_is_somebody_else_s_genuine_speech(forged):
    at = rows_of(forged, "dubbed"); b = forged.batch(at)
    real = forged.clips.batch(np.arange(6)).audio.numpy(); real = real - real.mean(1, keepdims=True)
    fit = np.abs((b.audio.numpy() - b.audio.numpy().mean(1, keepdims=True)) @ real.T)/np.linalg.norm(real, axis=1)   # (6, 6)
    taken = fit.argmax(1)
    for i,j in enumerate(taken): assert np.corrcoef(b.audio[i].numpy(), real[j])[0, 1] > .999 and forged.who[j] != forged.who[forged.source[at[i]]]
    assert np.allclose(b.audio.std(1), original(forged, b).audio.std(1), rtol=1e-3), "as loud as the clip's own sound"


def test_missing_modalities_limit_the_kinds(forged):
    table = pd.crosstab(forged.rows.corpus, forged.rows.method)
    kinds = lambda corpus: set(table.columns[table.loc[corpus] > 0])
    assert kinds("talk") == {"real", *PARAMS.kinds} and kinds("silent") == {"real", "self_blend", "mouth"} and kinds("radio") == {"real", "vocoded"}
    b = forged.batch(np.concatenate([rows_of(forged, "mouth", "silent"), rows_of(forged, "vocoded", "radio")]))
    assert b.y.tolist() == [1]*4 and b.y_video[:2].tolist() == [1, 1] and b.y_audio[2:].tolist() == [1, 1]
    assert b.y_sync.isnan().all() and b.y_audio[:2].isnan().all() and b.y_video[2:].isnan().all()


def test_every_combination_of_parts_has_the_labels_of_its_parts():
    for kind in [a + "+" + b for a in PARTS for b in PARTS if a != b]:
        t, (a, b) = truth_of(kind), (PARTS[k] for k in kind.split("+"))
        assert (t.video, t.audio, t.sync) == tuple(x or y for x, y in zip(a, b)) and t.method == kind


# genuine clips -------------------------------------------------------------------------------------------------------

def test_real_clips_are_untouched(forged, clips):
    real = forged.rows.index[forged.rows.y == 0].to_numpy()
    assert forged.rows.id[real].tolist() == clips.rows.id[(clips.rows.y == 0).fillna(False)].tolist()
    for epoch in (0, 3):
        b = forged.of_epoch(epoch).batch(real)
        assert same(replace(b, idx=torch.from_numpy(forged.source[real])), clips.batch(forged.source[real]))


def test_forging_leaves_the_stored_clips_alone(clips):
    before = clips.batch(range(len(clips)))
    fresh = Forged(clips, PARAMS, 1)
    for b in eval_batches(fresh, 16): pass
    assert same(before, clips.batch(range(len(clips))))


def test_no_fake_is_made_from_a_fake(forged, clips):
    used = set(forged.source.tolist())
    assert used == set(np.flatnonzero((clips.rows.y == 0).fillna(False))) and not {"talk/6.mp4", "talk/7.mp4", "talk/8.mp4", "silent/2.mp4"} & set(clips.rows.id[sorted(used)])
    assert {int(v) for vs in forged.voices.values() for v in vs} <= used, "no fake and no unknown clip lends its voice"


def test_a_contradictory_row_counts_as_no_genuine_clip(stored):
    folder, df = stored
    odd = Clips(folder, df.assign(y_video=df.y_video.where(df.id != "talk/0.mp4", 1)), "train")
    assert 0 not in Forged(odd, PARAMS, 0).source


# where and how much --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("part, touched", [("self_blend", tuple(SHAPES)), ("mouth", ("lower", "mouth"))])
def test_the_mask_bounds_the_change(clips, part, touched):
    "Outside of the largest shape that may be drawn, moved as far as it may be moved, every byte stays."
    b = clips.batch([0]); face, mouth = b.face[0].numpy(), b.mouth[0].numpy()
    eyes, lips = crop_points(P, False)[:2].mean(0), crop_points(P, False)[3:].mean(0)
    unit = (lips - eyes)[1]/.88
    changed = np.zeros((P, P), bool)
    for seed in range(12):
        f, m = blended(face, mouth, part, 1., stream(seed, part))
        assert f.dtype == m.dtype == np.uint8 and f.shape == face.shape and m.shape == mouth.shape
        changed |= (f != face).any((0, 3))
    y, x = np.mgrid[:P, :P]
    up, down, side = ((y - eyes[1])/unit).min(), ((y - eyes[1])/unit).max(), np.abs((x - eyes[0])/unit)
    middle = [SHAPES[s][:3] for s in touched]
    far = .35  # head units: lips off the middle, misplaced and jittering
    reach_x = max(w for _, w, _ in middle)*1.15 + far; top = min(c - h*1.15 for c, _, h in middle) - far
    outside = (side > reach_x) | ((y - eyes[1])/unit < top)
    assert outside.mean() > .1 and not changed[outside].any() and changed[~outside].mean() > .3


def test_strength_and_masks_act(clips):
    b = clips.batch([0]); face, mouth = b.face[0].numpy(), b.mouth[0].numpy()
    by = {s: np.mean([np.abs(blended(face, mouth, "self_blend", s, stream(i))[0].astype(int) - face).mean() for i in range(10)]) for s in (0., 1.)}
    assert 0 < by[0.] < by[1.]


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_drawn_blends_are_sane(seed, strength):
    how = blend_of(tuple(SHAPES), strength, stream(seed))
    assert 0 < how.resolution <= 1 and 0 < how.soft < 1 and .5 <= how.opacity <= 1 and min(how.blur, how.colour, how.contrast, how.misplace, how.jitter, how.flicker, how.noise) >= 0


def test_lips_are_found_where_they_are():
    "A mouth crop cut from a face crop, off the usual place by a known distance."
    face = np.stack([(grain(stream(0, k), P, 10)*50 + 128).clamp(0, 255).byte().numpy() for k in range(4)])
    usual, off = crop_points(P, False)[3:].mean(0) + .5, np.array([[0, 0], [3, 0], [-4, 2], [2, -3]])
    mouth = np.stack([f[int(c[1]) - P//4:int(c[1]) + P//4, int(c[0]) - P//4:int(c[0]) + P//4] for f, c in zip(face, np.round(usual) + off)])   # (4, P/2, P/2): the same scale
    assert np.abs(lips_of(np.repeat(face[..., None], 3, 3), mouth) - off).max() <= 1


@pytest.mark.parametrize("n, k", [(36, 4), (18, 3), (25, 7), (5, 5), (40, 1)])
def test_face_crops_are_known_by_their_frames(n, k): assert instants(np.zeros((k, 2, 2, 3)), np.zeros((n, 2, 2))).tolist() == sharp_frames(n, k).tolist()


@pytest.mark.parametrize("frames", [-6, -1, 1, 5])
def test_moving_moves_by_so_many_frames(frames):
    mouth = np.arange(T, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    samples = np.arange(T*SAMPLES_PER_FRAME, dtype=np.float32)/1e5
    seen, heard = moved(mouth, samples, frames, True)
    assert heard is samples and (seen[max(0, frames):T + min(0, frames), 0, 0] == mouth[max(0, -frames):T - max(0, frames), 0, 0]).all() and set(seen.ravel()) <= set(mouth.ravel())
    seen, heard = moved(mouth, samples, frames, False)
    n, edge = frames*SAMPLES_PER_FRAME, 200
    own = slice(max(0, n) + edge, len(samples) + min(0, n) - edge)
    assert seen is mouth and np.array_equal(heard[own], samples[own.start - n:own.stop - n]) and heard.shape == samples.shape
    assert heard[n % len(samples)] == 0 and heard.dtype == np.float32


# the same again ------------------------------------------------------------------------------------------------------

def test_the_batch_of_seed_epoch_and_step_is_always_the_same(clips, forged):
    again = Forged(clips, replace(PARAMS, cache_mb=0), 0)     # nothing kept, another order of asking
    want = [list(train_batches(forged, 20, 0, epoch, PLAIN)) for epoch in (0, 1)]
    for epoch in (1, 0):
        for start in (2, 0):
            for a, b in zip(want[epoch][start:], train_batches(again, 20, 0, epoch, replace(PLAIN, prefetch=2), start), strict=True): assert same(a, b)
    assert not same(want[0][0], want[1][0])


def test_a_clip_does_not_depend_on_its_batch(forged):
    "So that several processes with a part of the batch each make the clips that one would make."
    at = np.concatenate([rows_of(forged, k)[:2] for k in PARAMS.kinds])
    forged = forged.of_epoch(2); whole, parts = forged.batch(at), [forged.batch([i]) for i in at[::-1]][::-1]
    for i, part in enumerate(parts): assert same(whole.map(lambda t: t[i:i + 1]), part)


def test_another_seed_and_another_epoch_make_other_fakes(clips, forged):
    at, other = rows_of(forged, "self_blend"), Forged(clips, PARAMS, 1)
    faces = [f.batch(at).face for f in (forged, forged.of_epoch(1), other)]
    for a, b in ((0, 1), (0, 2), (1, 2)): assert not any(torch.equal(x, y) for x, y in zip(faces[a], faces[b]))


def test_validation_sees_the_same_fakes_each_time(forged):
    for a, b in zip(eval_batches(forged, 32), eval_batches(forged, 32), strict=True): assert same(a, b)


def test_the_memory_for_sound_is_bounded(clips):
    p = replace(PARAMS, kinds=["vocoded"], vocoders=["phase_vocoder"], versions=8, cache_mb=0)
    none, some = Forged(clips, p, 0), Forged(clips, replace(p, cache_mb=1), 0)
    at = rows_of(none, "vocoded")
    for epoch in range(8): assert same(none.of_epoch(epoch).batch(at), some.of_epoch(epoch).batch(at))
    assert not none.kept and 2**19 < sum(v.nbytes for v in some.kept.values()) <= 2**20


# proportions and the switch ------------------------------------------------------------------------------------------

def test_batches_have_their_proportions(stored):
    folder, df = stored
    forged = Forged(Clips(folder, df[df.corpus == "talk"], "train"), replace(PARAMS, kinds=["self_blend", "shifted", "dubbed"]), 0)
    drawn = torch.cat([b.idx for b in train_batches(forged, 12, 0, 0, replace(PLAIN, real=.5))])
    assert forged.rows.method[drawn.numpy()].value_counts().to_dict() == dict(real=12, self_blend=4, shifted=4, dubbed=4)
    labels = torch.cat([torch.stack([b.y, b.y_sync]) for b in train_batches(forged, 12, 0, 0, PLAIN)], 1)
    assert labels.mean(1).tolist() == pytest.approx([.5, 1/3])
    few = torch.cat([b.y for b in train_batches(forged, 8, 0, 0, replace(PLAIN, real=.25, epoch_clips=16))])
    assert few.mean() == .75


def test_genuine_clips_alone_are_enough(stored):
    folder, df = stored
    real = Clips(folder, df[(df.y == 0).fillna(False)], "train")
    with pytest.raises(ValueError, match="genuine: set `train.fakes: forged`"): training_clips(real, "corpus", PARAMS, 0)
    forged = training_clips(real, "forged", PARAMS, 0)
    b = next(iter(train_batches(forged, 16, 0, 0, PLAIN)))
    assert isinstance(forged, Forged) and set(b.y.tolist()) == {0, 1}


def test_a_model_learns_from_genuine_clips_alone(stored, tmp_path):
    "Training, choosing an epoch, and the card of a verdict: all of it without a single fake."
    folder, df = stored
    df = df[(df.y == 0).fillna(False)].assign(split=lambda d: np.where(d.id.isin(["talk/4.mp4", "talk/5.mp4"]), "val", "train"))
    params = read_params(ROOT/"params.yaml")
    model = typed(params["model"] | dict(encoder="compact", dim=16, layers=1, heads=2, reach=6, window=4), ModelParams, "model")
    train = typed(params["train"] | dict(fakes="forged", epochs=2, batch_size=12, precision="float32"), TrainParams, "train")
    learn_from, validate_on = (training_clips(Clips(folder, df, split), train.fakes, PARAMS, 0) for split in ("train", "val"))
    batches, n = replace(PLAIN, epoch_clips=24, sharp=2), 2
    net = build(model, P, Q)
    history = fit(net, lambda epoch: train_batches(learn_from, 12, 0, epoch, batches), n, lambda m: validation_auc(m, eval_batches(validate_on, 16), precision="float32"), train, tmp_path, dict(seed=0, face_px=P, mouth_px=Q), progress_bar=False)
    assert len(history) == 2 and all(np.isfinite(row["val_auc"]) and np.isfinite(row["loss"]) for row in history)
    net, _ = load_checkpoint(tmp_path)
    card = make_card(net, tmp_path, learn_from, validate_on, lambda clips: eval_batches(clips, 16), dict(corpora=["talk"], embedded=False), {}, "float32")
    assert card.calibration["both"]["fake"]["n_real"] == 2 and card.calibration["both"]["fake"]["n_fake"] == 2*len(PARAMS.kinds)


def test_fakes_alone_are_not(stored):
    folder, df = stored
    fakes = Clips(folder, df[(df.y == 1).fillna(False)], "train")
    with pytest.raises(ValueError, match="genuine clips are needed"): training_clips(fakes, "corpus", PARAMS, 0)
    with pytest.raises(ValueError, match="no genuine clip"): training_clips(fakes, "forged", PARAMS, 0)


def test_kinds_that_no_clip_allows_are_an_error(stored):
    folder, df = stored
    silent = Clips(folder, df[df.corpus == "silent"], "train")
    with pytest.raises(ValueError, match="lack the picture, the sound"): Forged(silent, replace(PARAMS, kinds=["dubbed", "vocoded"]), 0)
    alone = Clips(folder, df[df.id == "talk/0.mp4"], "train")
    assert set(Forged(alone, PARAMS, 0).rows.method) == {"real"} | {k for k in PARAMS.kinds if "dubbed" not in k}


def test_corpus_is_left_as_it_is(clips): assert training_clips(clips, "corpus", PARAMS, 0) is clips


@pytest.mark.parametrize("change, message", [
    (dict(kinds=["self_blended"]), "did you mean `self_blend`"), (dict(kinds=[]), "at least one"), (dict(kinds=["mouth", "mouth"]), "different kinds"),
    (dict(vocoders=["lcp"]), "none of"), (dict(vocoders=[]), "is empty"), (dict(picture=[.5]), "pseudo.picture"), (dict(sound=[.5, 2.]), "pseudo.sound"), (dict(shift=[5, 3]), "pseudo.shift"),
    (dict(shift=[0, 3]), "at least 1"), (dict(versions=0), "at least 1"), (dict(cache_mb=-1), "negative")])
def test_wrong_parameters_are_named(change, message):
    with pytest.raises(ParamsError, match=message): replace(PARAMS, **change)


def test_the_project_s_own_parameters_are_right():
    p = typed(read_params(ROOT/"params.yaml")["pseudo"], PseudoParams, "pseudo")
    assert set(p.vocoders) <= set(VOCODERS) and p.shift[1] < read_params(ROOT/"params.yaml")["prepare"]["frames"]


@pytest.mark.parametrize("change, message", [(dict(fakes="forge"), "must be corpus or forged")])
def test_the_switch_has_two_positions(change, message):
    with pytest.raises(ValueError, match=message): typed(read_params(ROOT/"params.yaml")["train"] | change, TrainParams, "train")


# in words ------------------------------------------------------------------------------------------------------------

def row(model, method, auc, half=.05, seed=0, corpus="toy"): return dict(model=model, test_corpus=corpus, category=ALL, method=method, seed=seed, n_real=9, n_fake=9, auc=auc, auc_lo=auc - half, auc_hi=auc + half)


def test_a_kind_is_caught_where_its_interval_says_so():
    mine = pd.DataFrame([row("cad", ALL, .7), row("cad", "clear shifts", .99), row("cad", "a", .56), row("cad", "b", .54), row("cad", "c", float("nan")), row("cad", "a", .9, corpus="other"), row("cad", "held_out", .7)])
    taught = pd.DataFrame([row("cad", ALL, .9), row("cad", "a", .7), row("cad", "b", .55), row("naive", "a", .2)])
    alone = in_words(beside(mine, taught[:0], "toy"))
    assert len(alone) == 3 and "`a` 0.560 (0.510 to 0.610)" in alone[1] and "`b`" in alone[2] and not any(k in " ".join(alone) for k in ("`c`", "other", "held_out", "clear shifts"))
    both = in_words(beside(mine, taught, "toy"))
    assert both[:3] == alone and "clearly better at: `a` 0.700" in both[4] and both[5].endswith("clearly worse at: none.")


@pytest.mark.parametrize("change, message", [(dict(seeds=[]), "at least one"), (dict(seeds=[1, 1]), "different seeds"), (dict(variants=[]), "nothing to train")])
def test_a_study_without_trainings_is_an_error(change, message):
    with pytest.raises(ParamsError, match=message): RealOnlyParams(**(dict(variants=["cad"], seeds=[0], epochs=1, epoch_clips=0) | change))
