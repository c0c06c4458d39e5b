"""The complementarity study and the controls: corrections and tables against their definitions, trainings in a queue against trainings by themselves."""
from dataclasses import replace
from itertools import combinations
import json
import numpy as np, pandas as pd, pytest, torch
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score
from cad_nb.core import ParamsError, SAMPLES_PER_FRAME, hash_of, read_params, typed
from cad_nb.data.clips import BatchParams, Clips
from cad_nb.data.manifest import as_manifest, read_manifest, write_manifest
from cad_nb.judge.evaluate import ALL, EvaluateParams, Run
from cad_nb.judge.metrics import holm
from cad_nb.judge.robustness import CONTROLS, cost_of, moved, move_outcomes, moves, partners, sentences, shifted_peaks, under
from cad_nb.judge.study import by_modality, catches, comparisons, from_wide, late_fusion, offset_detector, patterns, probe, to_wide, union_and_alone, verdicts
from cad_nb.learn import TrainParams, load_checkpoint
from cad_nb.models.cad import ModelParams
from cad_nb.run.stages import local_imports
from cad_nb.run.study import TRAINS, Job, judge_job, train_all, train_job
from conftest import ROOT

PARAMS = EvaluateParams(100, .95, .02, 5, 15)


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closure_of_bonferroni(seed):
    "A hypothesis falls when every set of hypotheses that contains it falls by Bonferroni: that is where Holm's steps come from."
    p = np.random.default_rng(seed).random(5)**2
    by_closure = [max(min(1, len(s) * min(p[list(s)])) for n in range(1, 6) for s in combinations(range(5), n) if i in s) for i in range(5)]
    assert np.allclose(holm(p), by_closure)
    shuffled = np.random.default_rng(seed).permutation(5)
    assert np.allclose(holm(p[shuffled]), holm(p)[shuffled]) and (holm(p) >= p).all()


def test_what_is_undefined_is_no_comparison():
    assert np.allclose(holm([.02, np.nan, .03])[[0, 2]], [.04, .04]) and np.isnan(holm([.02, np.nan, .03])[1]) and holm([]).size == 0


def table(models, n=160, seeds=2, noise=1.):
    "Scores of made-up models with given skill, on people who each bring several clips."
    rng, i = np.random.default_rng(0), np.arange(n)
    facts = pd.DataFrame(dict(id=[f"c{k:03}" for k in i], identity=[f"p{k % 16}" for k in i], corpus="toy", category=np.where(i % 2, "B", "C"), method=np.where(i % 4 == 0, "real", np.where(i % 2, "swap", "voice")), y=(i % 4 > 0)*1., split=np.where(i < n//2, "val", "test")))
    return pd.concat([facts.assign(model=m, seed=s, score=1/(1 + np.exp(-skill*facts.y - noise*rng.normal(size=n)))) for m, skill in models.items() for s in range(seeds)], ignore_index=True)

runs_of = lambda scores: [Run(m, s, "toy", "in_domain", ("voice",), "", "", "") for m, s in scores[["model", "seed"]].drop_duplicates().itertuples(index=False)]


def test_a_lead_is_the_difference_of_mean_aucs():
    scores = table(dict(cad=2., naive=.5, align=1.9))
    pairs = comparisons(scores, runs_of(scores), PARAMS)
    test = scores[scores.split == "test"]
    mean = {m: np.mean([roc_auc_score(t.y, t.score) for _, t in g.groupby("seed")]) for m, g in test.groupby("model")}
    of_all = pairs[(pairs.method == ALL) & (pairs.category == ALL)].set_index("model")
    for m in ("naive", "align"): assert of_all.auc_lead[m] == pytest.approx(mean["cad"] - mean[m])
    assert of_all.low["naive"] > 0 and (pairs.p_holm >= pairs.p).all() and (of_all.n_seeds == 2).all()
    assert {"held_out", "seen", "B", "C"} <= set(pairs.method) | set(pairs.category)
    said = verdicts(pairs)
    assert "toy, all fakes: cad clearly ahead of naive" in said[0] and any("held-out" in s for s in said)
    assert not any("held-out" in s or "nan" in s for s in verdicts(pairs.assign(auc_lead=pairs.auc_lead.mask(pairs.method == "held_out"))))   # without such fakes nothing is said of them


def test_a_model_without_a_score_on_some_clips_is_compared_on_the_rest():
    scores = table(dict(cad=2., audio_only=1.))
    silent = (scores.model == "audio_only") & scores.identity.isin(["p1", "p2"])
    pairs = comparisons(scores.assign(score=scores.score.mask(silent)), runs_of(scores), PARAMS)
    row = pairs[(pairs.method == ALL) & (pairs.category == ALL)].iloc[0]
    heard = scores[(scores.split == "test") & (scores.model == "cad") & ~scores.identity.isin(["p1", "p2"]) & (scores.seed == 0)]
    assert row.n_real + row.n_fake == len(heard) < 80


def test_late_fusion_takes_the_mean_of_what_is_said():
    two = pd.DataFrame(dict(id=list("abab"), seed=0, model=["v", "v", "a", "a"], score=[.2, .6, .8, np.nan], score_video=.1))
    fused = late_fusion(two, ["v", "a"], "late").set_index("id")
    assert fused.score.to_dict() == dict(a=.5, b=.6) and set(fused.model) == {"late"} and "score_video" not in fused


def test_the_offset_detector_knows_in_sync_from_the_rest():
    bump = lambda at, height: height * np.exp(-(np.arange(-15, 16) - at)**2 / 4)
    s = offset_detector(np.stack([bump(0, .9), bump(0, .4), bump(7, .9), bump(0, 0), np.full(31, np.nan)]))
    assert s[0] < s[1] < s[2] and s[3] == .5 and np.isnan(s[4]) and ((s[:4] > 0) & (s[:4] < 1)).all()


def test_patterns_count_every_fake_once():
    scores = table(dict(video_only=1., audio_only=1., cad=3.))
    caught = catches(scores, runs_of(scores))
    found = patterns(caught, ["video_only", "audio_only", "cad"])
    assert found.n.sum() == ((scores.split == "test") & (scores.y == 1)).sum() / 6 and not found.duplicated(["video_only", "audio_only", "cad"]).any()
    of = union_and_alone(caught, ["video_only", "audio_only"]).set_index("path")
    fakes = caught[caught.y == 1]
    assert of.caught["cad"] == pytest.approx((fakes.cad >= .5).mean()) and of.alone["video_only"] == pytest.approx(((fakes.video_only >= .5) & (fakes.audio_only < .5)).mean())
    assert of.false_alarms["cad"] == pytest.approx((caught[caught.y == 0].cad >= .5).mean())


def test_a_modality_is_judged_on_its_own_fakes():
    scores = table(dict(cad=2.)).assign(y_video=lambda t: (t.method == "swap")*1., y_audio=lambda t: (t.method == "voice")*1., score_video=lambda t: t.y, teacher_video=lambda t: -t.y, score_audio=np.nan, teacher_audio=np.nan)
    found = by_modality(scores, PARAMS).set_index(["seed", "modality", "reader"])
    assert found.auc[0, "video", "evidence"] == 1 and found.auc[0, "video", "teacher"] == 0 and (0, "audio", "evidence") not in found.index
    t = scores[(scores.split == "test") & (scores.seed == 0) & (scores.method != "swap")]
    assert found.auc[0, "audio", "fake"] == pytest.approx(roc_auc_score(t.y, t.score))


def test_scores_are_kept_and_read_back():
    scores = table(dict(cad=2., naive=1.))
    again = from_wide(to_wide(scores, ["id", "identity", "corpus", "category", "method", "y", "split"], 6))
    both = scores.merge(again, on=["id", "model", "seed"], suffixes=("", "_again"))
    assert len(both) == len(scores) and np.allclose(both.score, both.score_again, atol=1e-6) and (both.method == both.method_again).all()


def test_a_probe_finds_what_is_linear_and_bears_gaps():
    rng = np.random.default_rng(0)
    y = (rng.random(200) < .5)*1.; x = rng.normal(size=(200, 10)); x[:, 3] += 3*y; x[::7, 5:] = np.nan
    said, c = probe((x[:100], np.r_[np.nan, y[1:100]]), (x[100:140], y[100:140]), x[140:], [1e-2, 1.])
    assert roc_auc_score(y[140:], said) > .9 and c in (1e-2, 1.) and np.isfinite(said).all()


# controls ------------------------------------------------------------------------------------------------------------

def test_sound_moves_by_whole_frames_and_comes_back():
    a = torch.arange(6.).repeat_interleave(SAMPLES_PER_FRAME)[None]
    assert moved(a, 2)[0, ::SAMPLES_PER_FRAME].tolist() == [4, 5, 0, 1, 2, 3] and torch.equal(moved(moved(a, 2), -2), a)


def test_partners_are_other_people_and_come_from_everywhere():
    who = np.array([f"p{i // 3}" for i in range(30)])
    got = partners(who)
    assert (who[got] != who).all() and len(set(got)) > 10 and partners(who).tolist() == got.tolist()


def test_moves_are_against_where_the_peak_was():
    at = moves(pd.DataFrame(dict(idx=[0]*3 + [1]*3, shift=[-3, 0, 3]*2, peak=[-1, 2, 5, -2, 0, 0])))
    assert at.set_index("shift").exact.to_dict() == {-3: .5, 0: 1., 3: .5} and at.set_index("shift").near.to_dict() == {-3: 1., 0: 1., 3: .5}
    short = move_outcomes(at)
    assert [o["holds"] for o in short if o["target"]] == [False, False] and all("NOT as asked" in s for s in sentences(pd.DataFrame(short).assign(model="m")))


def test_what_muting_costs_is_a_difference_of_aucs():
    rng, n = np.random.default_rng(0), 200
    facts = pd.DataFrame(dict(idx=np.arange(n), id=[str(i) for i in range(n)], identity=[f"p{i % 20}" for i in range(n)], y=(np.arange(n) % 2)*1.)).assign(y_video=lambda t: t.y, y_audio=lambda t: (t.idx % 10 == 1)*1., y_sync=0.)
    said = pd.concat([facts.assign(control=c, score=facts.y*k + rng.normal(size=n), score_video=rng.random(n), score_audio=np.nan) for c, k in (("as it is", 3.), ("muted", .5), ("black", 1.))])
    rows = cost_of(said, "muted", n_boot=50)
    alone = said[said.y_audio == 0]
    expected = {c: roc_auc_score(g.y_video, g.score) for c, g in alone.groupby("control")}
    assert rows[0]["value"] == pytest.approx(expected["as it is"]) and rows[2]["value"] == pytest.approx(expected["muted"] - expected["as it is"]) and rows[2]["holds"] is False
    assert len(cost_of(said, "black", n_boot=50)) == 3, "a variant without that logit has no row for it"


# trainings -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "Prepared clips of noise, in which the faces of fakes are brighter, and sections small enough for seconds."
    folder, n, T = tmp_path_factory.mktemp("toy"), 32, 16
    rng, y = np.random.default_rng(0), np.arange(n) % 2
    (folder/"features"/"toy").mkdir(parents=True)
    save_file(dict(face=(rng.integers(0, 150, (n, 2, 16, 16, 3)) + 100*y[:, None, None, None, None]).astype(np.uint8), mouth=rng.integers(0, 255, (n, T, 16, 16)).astype(np.uint8),
                   audio=rng.integers(-9000, 9000, (n, T*SAMPLES_PER_FRAME)).astype(np.int16), has_video=np.ones(n, np.uint8), has_audio=(np.arange(n) % 8 > 0).astype(np.uint8)), folder/"features"/"toy"/"shard-00000.safetensors")
    (folder/"features"/"toy"/"shard-00000.json").write_text(json.dumps(dict(windows=[dict(id=f"toy/{i}.mp4", start_frame=1) for i in range(n)])))
    rows = [dict(id=f"toy/{i}.mp4", corpus="toy", path=f"{i}.mp4", identity_source=f"p{i//2}", method="swap" if y[i] else "real", status="ok", split="val" if i >= 24 else "train", y=y[i], y_video=y[i], y_audio=int(i % 4 == 1), y_sync=0) for i in range(n)]
    write_manifest(folder/"features"/"manifest.csv", as_manifest(rows))
    given = read_params(ROOT/"params.yaml")
    batches, model, train = typed(given["batches"], BatchParams, "batches"), typed(given["model"], ModelParams, "model"), typed(given["train"], TrainParams, "train")
    return folder/"features", (batches, replace(model, dim=16, layers=1, heads=2, reach=5, window=3), replace(train, batch_size=8, precision="float32", patience=9))


def test_a_queue_trains_what_each_training_would_by_itself(toy, tmp_path):
    features, sections = toy
    jobs = [Job("cad", 0, 2), Job("audio_only", 1, 1)]
    found = train_all(jobs, features, tmp_path/"queue", *sections, workers=2, say=lambda line: None)
    assert list(found.name) == [j.name for j in jobs] and (found.seconds > 0).all()
    torch.set_num_threads(1)
    for job in jobs:
        train_job(job, features, tmp_path/"alone", *sections)
        assert hash_of(tmp_path/"queue"/job.name/"model.safetensors") == hash_of(tmp_path/"alone"/job.name/"model.safetensors"), job.name
    said = []
    again = train_all(jobs[:1], features, tmp_path/"queue", *sections, workers=1, say=said.append)
    assert again.seconds.tolist() == [0.] and "was there already" in said[0]


def test_a_label_of_one_kind_teaches_nothing_and_is_said_before_anything_runs(toy, tmp_path):
    features, sections = toy
    (tmp_path/"features").mkdir()
    write_manifest(tmp_path/"features"/"manifest.csv", read_manifest(features/"manifest.csv").assign(y_audio=0))
    with pytest.raises(ParamsError, match="`audio_only`, which learns `y_audio`.* of `train`"):
        train_all([Job("cad", 0, 1), Job("audio_only", 0, 1)], tmp_path/"features", tmp_path/"queue", *sections, workers=1)


def test_what_has_changed_is_trained_again(toy, tmp_path):
    features, (batches, model, train) = toy
    job = Job("video_only", 0, 1)
    assert train_job(job, features, tmp_path, batches, model, train)["seconds"] and not train_job(job, features, tmp_path, batches, model, train)["seconds"]
    assert train_job(job, features, tmp_path, batches, model, replace(train, lr=train.lr/2))["seconds"]
    (tmp_path/job.name/"history.json").unlink()    # stopped before its end
    assert train_job(job, features, tmp_path, batches, model, replace(train, lr=train.lr/2))["seconds"]


def test_the_fingerprint_of_the_code_covers_what_trains():
    todo, seen = {"learn", "data.clips"}, set()
    while todo:
        m = todo.pop(); seen.add(m)
        todo |= {".".join(p.relative_to(ROOT/"cad_nb").with_suffix("").parts) for p in local_imports((ROOT/"cad_nb"/f"{m.replace('.', '/')}.py").read_text(), f"cad_nb.{m}", ROOT/"cad_nb")} - seen
    assert set(TRAINS) == seen


def test_what_is_misspelt_is_said_before_anything_runs(toy, tmp_path):
    features, sections = toy
    for job, word in ((Job("cads", 0, 1), "no variant `cads`"), (Job("cad", 0, 1, (("loss.tokens", 1.),)), "`loss.tokens`"), (Job("cad", 0, 1, (("model.encoder", 1.),)), "`model.encoder`")):
        with pytest.raises(ParamsError, match=word): train_all([Job("cad", 0, 1), job], features, tmp_path/"none", *sections)
    assert not (tmp_path/"none").exists()


def test_looking_inside_changes_no_score(toy, tmp_path):
    features, sections = toy
    job = Job("cad", 0, 1)
    train_job(job, features, tmp_path, *sections)
    clips = Clips(features, read_manifest(features/"manifest.csv"), "val")
    found = judge_job(job, tmp_path, clips, "float32", size=3)
    model, _ = load_checkpoint(tmp_path/job.name)
    with torch.no_grad(): verdict = model.read(clips.batch(range(len(clips))))
    assert np.allclose(found.scores.score, verdict.logits[:, 0].sigmoid(), atol=1e-5) and np.allclose(found.scores.teacher_video, verdict.lessons["video"].logit, atol=1e-4)
    silent = ~clips.batch(range(len(clips))).has_audio.numpy()
    assert silent.any() and set(found.tokens) == {"fused", "aligned", "video teacher", "audio teacher"}
    assert (np.isnan(found.tokens["aligned"]).all(1) == silent).all() and (found.scores.syncnet.isna() == silent).all() and found.scores.score.notna().all()
    said = under(model, clips, precision="float32")
    assert set(said.control) == set(CONTROLS) and not set(said.idx) & set(np.flatnonzero(silent)) and said[said.control == "muted"].score_audio.isna().all()
    peaks = shifted_peaks(model, [clips.batch([1, 2, 3])], [-1, 0, 1], precision="float32")
    still = model.read(clips.batch([1, 2, 3])).aligned.curve.argmax(1) - 5
    assert peaks[peaks["shift"] == 0].peak.tolist() == still.tolist()
