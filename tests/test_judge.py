"Metrics against scikit-learn and by hand; result tables; the verdict on a reproduction."
import time
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sk
from cad_nb.judge import evaluate as ev
from cad_nb.judge import metrics as m

clips = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=40).filter(lambda c: len({y for y, _ in c}) == 2)   # few distinct scores: many ties


@settings(max_examples=150, deadline=None)
@given(clips)
def test_ranking_metrics_equal_scikit_learn(c):
    y, s = map(np.array, zip(*c))
    assert m.auc(y, s) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)
    assert m.average_precision(y, s) == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    assert m.average_precision(y, s, of="real") == pytest.approx(sk.average_precision_score(1 - y, -s), abs=1e-12)
    fpr, tpr, cuts = sk.roc_curve(y, s, drop_intermediate=False)
    for ours, theirs in zip(m.roc_points(y, s), (fpr, tpr, cuts)): np.testing.assert_allclose(ours, theirs)
    assert m.tpr_at_fpr(y, s, .25) == pytest.approx(tpr[fpr <= .25].max())
    assert m.balanced_accuracy(y, s, 1) == pytest.approx(sk.balanced_accuracy_score(y, s >= 1))


@settings(max_examples=100, deadline=None)
@given(clips)
def test_eer_lies_where_the_curve_crosses(c):
    y, s = map(np.array, zip(*c))
    fpr, tpr, _ = sk.roc_curve(y, s, drop_intermediate=False)
    got = m.eer(y, s)
    steps = np.linspace(0, 1, len(fpr))          # along the curve, so that vertical parts are walked too
    t = brentq(lambda u: np.interp(u, steps, fpr) + np.interp(u, steps, tpr) - 1, 0, 1)
    assert got == pytest.approx(np.interp(t, steps, fpr), abs=1e-9)


def test_eer_equals_the_usual_recipe_on_continuous_scores():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400); s = y + rng.normal(size=400)
    fpr, tpr, _ = sk.roc_curve(y, s)
    assert m.eer(y, s) == pytest.approx(brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1), abs=3e-3)


@settings(max_examples=60, deadline=None)
@given(clips, st.data())
def test_weights_are_repetitions(c, data):
    y, s = map(np.array, zip(*c))
    w = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))))
    for metric in (m.auc, m.average_precision, m.eer, lambda *a, **k: m.tpr_at_fpr(*a, .3, **k), lambda *a, **k: m.balanced_accuracy(*a, 0, **k)):
        rows = metric(y, s, weights=np.stack([w, np.ones_like(w)]))
        np.testing.assert_allclose(rows, [metric(np.repeat(y, w), np.repeat(s, w)), metric(y, s)], atol=1e-12)


def test_undefined_is_nan_with_a_reason_and_never_0():
    for y, reason in (([], "no clips"), ([1, 1], "no reals"), ([0], "no fakes")):
        s = np.linspace(.1, .9, len(y))
        assert m.why_undefined(y) == reason
        values = [m.auc(y, s), m.average_precision(y, s), m.average_precision(y, s, of="real"), m.eer(y, s), m.tpr_at_fpr(y, s, .1), m.balanced_accuracy(y, s, .5), m.threshold_for(y, s)]
        assert np.isnan(values).all(), values
        assert np.isnan(m.bootstrap(m.auc, y, s, range(len(y)))).all()
        assert np.isnan(m.paired_bootstrap(m.auc, y, s, s, range(len(y)))).all()
    assert np.isnan(m.balanced_accuracy([0, 1], [.1, .2], np.nan)) and np.isnan(m.brier([], [])) and np.isnan(m.ece([], []))


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="equal length"): m.auc([0, 1], [.1])
    with pytest.raises(ValueError, match="must be 1"): m.auc([0, -1], [.1, .2])
    with pytest.raises(ValueError, match="no finite score"): m.auc([0, 1], [.1, np.nan])
    with pytest.raises(ValueError, match="logits"): m.brier([0, 1], [-3, 3])


@pytest.mark.parametrize("y,s,right", [([0, 0, 1, 1], [.1, .2, .8, .9], 1.), ([1, 1, 0, 0], [.1, .2, .8, .9], .5), ([0, 1], [.5, .5], .5)])
def test_threshold_reaches_the_best_balanced_accuracy(y, s, right):
    t = m.threshold_for(y, s)
    assert np.isfinite(t) and m.balanced_accuracy(y, s, t) == right


@settings(max_examples=80, deadline=None)
@given(clips)
def test_no_threshold_is_better(c):
    y, s = map(np.array, zip(*c))
    best = max(m.balanced_accuracy(y, s, t) for t in np.r_[s, s.max() + 1])
    assert m.balanced_accuracy(y, s, m.threshold_for(y, s)) == pytest.approx(best)


def test_calibration_by_hand():
    y, s = [0, 0, 1, 1, 1], [.05, .15, .55, .95, 1.]
    assert m.brier(y, s) == pytest.approx(sk.brier_score_loss(y, s))
    # bins of 0.5: three clips say 0.833 and are fake, two say 0.1 and are not
    assert m.ece(y, s, 2) == pytest.approx((2*.1 + 3*(1 - 2.5/3))/5)
    said, true, n = m.reliability(y, s, 4)
    assert n.tolist() == [2, 0, 1, 2] and np.isnan(said[1]) and true[3] == 1


def delong_sd(y, s):
    "Standard deviation of the AUC after DeLong, by placements."
    f, r = s[y == 1], s[y == 0]
    v = (f[:, None] > r) + .5*(f[:, None] == r)
    return np.sqrt(v.mean(1).var(ddof=1)/len(f) + v.mean(0).var(ddof=1)/len(r))


def test_bootstrap_agrees_with_delong_when_clips_are_independent():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 500); s = y + rng.normal(size=500)
    low, high = m.bootstrap(m.auc, y, s, np.arange(500), n=2000)
    assert (high - low)/2 == pytest.approx(1.96*delong_sd(y, s), rel=.1)
    assert low < m.auc(y, s) < high


def test_bootstrap_is_fast_seeded_and_blind_to_order():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 500); s = y + rng.normal(size=500); who = rng.integers(0, 50, 500)
    m.bootstrap(m.auc, y, s, who, n=10)
    seconds = []
    for _ in range(5):
        start = time.perf_counter(); first = m.bootstrap(m.auc, y, s, who); seconds.append(time.perf_counter() - start)
    assert min(seconds) < .5
    assert first == m.bootstrap(m.auc, y, s, who) != m.bootstrap(m.auc, y, s, who, seed=1)
    p = rng.permutation(500)
    np.testing.assert_allclose(first, m.bootstrap(m.auc, y[p], s[p], who[p]))


def test_resamples_do_not_depend_on_the_blocks():
    who = np.arange(300_000) % 7                       # blocks of 3 resamples
    blocks = list(m.resamples(who, 8))
    assert [len(b) for b in blocks] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(blocks)[:, :7], np.concatenate(list(m.resamples(np.arange(7), 8))))


def test_one_identity_has_no_interval():
    assert np.isnan(m.bootstrap(m.auc, [0, 1, 1], [.1, .5, .2], ["ann", "bob", "cy"])).all()      # reals of one person only


def test_paired_bootstrap_over_runs():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 300); who = rng.integers(0, 60, 300); base = y + 1.5*rng.normal(size=300)
    a, b = base + .4*y + .2*rng.normal(size=(3, 300)), base + .2*rng.normal(size=(2, 300))
    d = m.paired_bootstrap(m.auc, y, a, b, who)
    assert d.value == pytest.approx(np.mean([m.auc(y, s) for s in a]) - np.mean([m.auc(y, s) for s in b]))
    assert 0 < d.low < d.value < d.high and d.p == pytest.approx(2/1001)
    same = m.paired_bootstrap(m.auc, y, base, base, who)
    assert same[:3] == (0, 0, 0) and same.p == 1


# --- tables

PARAMS = ev.EvaluateParams(bootstrap=50, confidence=.95, auc_tolerance=.02, clear_shift_frames=5, ece_bins=10)
RUN = ev.Run("cad", 0, "a", "in_domain", ("new",), "s", "c", "p")


def table(model="cad", seed=0, corpora=("a", "b"), noise=.3):
    rng, rows = np.random.default_rng(seed), []
    for corpus in corpora:
        for split in ("train", "val", "test"):
            for method, category in (("real", "A"), ("old", "B"), ("new", "C")):
                for k in range(8):
                    y = int(method != "real")
                    rows.append(dict(id=f"{corpus}/{split}/{method}{k}", corpus=corpus, identity=f"p{k}", method=method, category=category, y=y, split=split, model=model, seed=seed,
                                     score=float(np.clip(.3 + .4*y + noise*rng.normal(), 0, 1)), offset_frames=(k if method == "old" else 0)))
    return pd.DataFrame(rows)


def test_columns_and_groups():
    got = ev.evaluate(table(), [RUN], PARAMS)
    assert list(got) == ev.COLUMNS
    rows = {(r.test_corpus, r.category, r.method): (r.n_real, r.n_fake) for r in got.itertuples()}
    assert rows[("a", "all", "all")] == (8, 16) and rows[("a", "B", "all")] == (8, 8) and rows[("a", "all", "held_out")] == (8, 8)
    assert rows[("a", "all", "clear shifts")] == (8, 3)                  # offsets 5, 6, 7
    assert ("b", "all", "held_out") not in rows                          # nothing of a foreign corpus was seen
    assert ("a", "A", "all") not in rows and ("a", "all", "real") not in rows


def test_auc_of_a_row_by_hand():
    scores = table()
    got = ev.evaluate(scores, [RUN], PARAMS).set_index(["test_corpus", "category", "method"])
    test = scores[(scores.split == "test") & (scores.corpus == "b")]
    part = test[test.method.isin(["real", "old"])]
    assert got.auc["b", "all", "old"] == pytest.approx(sk.roc_auc_score(part.y, part.score))
    val = scores[(scores.split == "val") & (scores.corpus == "a")]
    assert (got.threshold == m.threshold_for(val.y, val.score)).all()    # also for the rows of corpus b


def test_clips_without_score_lower_the_coverage_only():
    scores = table()
    lost = scores.id.isin(["a/test/real0", "a/test/old1", "a/test/old2"])
    fewer = ev.evaluate(scores.assign(score=scores.score.mask(lost)), [RUN], PARAMS).set_index(["test_corpus", "category", "method"])
    gone = ev.evaluate(scores[~lost], [RUN], PARAMS).set_index(["test_corpus", "category", "method"])
    assert fewer.coverage["a", "all", "all"] == 21/24 and fewer.coverage["a", "all", "old"] == 13/16 and (gone.coverage == 1).all()
    pd.testing.assert_frame_equal(fewer.drop(columns="coverage"), gone.drop(columns="coverage"))


def test_nullable_labels_and_unknown_identities():
    scores = table()
    scores["y"] = scores.y.astype("Int64").mask(scores.id == "a/test/old0")     # a clip whose truth nobody knows
    scores["identity"] = scores.identity.astype(object).mask(scores.id.str.endswith(("1", "2"))).where(~scores.id.str.endswith("3"), "")
    got = ev.evaluate(scores, [RUN], PARAMS)
    overall = got[(got.test_corpus == "a") & (got.category == "all") & (got.method == "all")].iloc[0]
    assert (overall.n_real, overall.n_fake) == (8, 15) and overall.auc_lo <= overall.auc <= overall.auc_hi


def test_wrong_tables_are_named():
    with pytest.raises(ValueError, match="no scores of cad, seed 7"): ev.evaluate(table(), [ev.Run("cad", 7, "a", "x", (), "s", "c", "p")], PARAMS)
    with pytest.raises(ValueError, match="two scores"): ev.evaluate(pd.concat([table(), table()]), [RUN], PARAMS)
    with pytest.raises(ValueError, match="groups of the result table"): ev.evaluate(table().replace({"method": {"old": "seen"}}), [RUN], PARAMS)
    with pytest.raises(ValueError, match="naive"): ev.difference(table(), "cad", "naive", "a", PARAMS)


def test_protocols_are_kept_apart():
    both = pd.concat([table().assign(protocol="in_domain"), table(noise=.01).assign(protocol="leave_out:new")])
    runs = [RUN, ev.Run("cad", 0, "a", "leave_out:new", ("new",), "s2", "c2", "p")]
    got = ev.evaluate(both, runs, PARAMS)
    overall = got[(got.category == "all") & (got.method == "all") & (got.test_corpus == "a")].set_index("protocol").auc
    assert overall["leave_out:new"] == 1 > overall["in_domain"]


def test_no_validation_no_threshold():
    got = ev.evaluate(table().query("split == 'test'"), [RUN], PARAMS)
    assert got.threshold.isna().all() and got.bal_acc.isna().all() and got.auc.notna().all()
    assert ev.operating_points(table().query("split == 'test'"), [RUN], PARAMS).accuracy.isna().all()


def test_windows_become_clips():
    w = pd.DataFrame(dict(id=["b", "a", "b"], logit=[1., np.nan, 3.], logit_video=[0., 1., 2.], note=["x", "y", "z"]))
    got = ev.to_clips(w)
    assert list(got) == ["id", "n_windows", "score", "score_video"] and got.id.tolist() == ["b", "a"] and got.n_windows.tolist() == [2, 0]
    assert got.score[0] == pytest.approx(1/(1 + np.exp(-2))) and np.isnan(got.score[1])


def test_difference_uses_common_clips_only():
    scores = pd.concat([table("cad", s, noise=.1) for s in (0, 1)] + [table("naive", s, noise=.6) for s in (0, 1)], ignore_index=True)
    scores.loc[(scores.model == "naive") & (scores.seed == 1) & (scores.id == "a/test/old0"), "score"] = np.nan
    d = ev.difference(scores, "cad", "naive", "a", PARAMS)
    assert (d["n_real"], d["n_fake"], d["n_seeds_a"]) == (8, 15, 2) and d["auc_gain"] > 0


def test_csv_keeps_every_bit_and_every_name(tmp_path):
    got = ev.evaluate(table(), [RUN], PARAMS).assign(split_hash="00012", checkpoint_hash="1e5", params_hash="nan", method="None")
    got.loc[0, "auc"] = np.nan
    back = ev.read_results(ev.write_results(got, tmp_path/"r.csv"))
    pd.testing.assert_frame_equal(back, got, check_exact=True, check_dtype=False)
    assert back.n_real.dtype == "int64" and back.auc.dtype == "float64"


@pytest.fixture(scope="module")
def committed(): return ev.evaluate(table(), [RUN], PARAMS)


def test_bit_for_bit_through_a_file_in_any_order(committed, tmp_path):
    back = ev.read_results(ev.write_results(committed.sample(frac=1, random_state=1), tmp_path/"r.csv"))
    assert ev.compare(back, committed, 0.).verdict == "reproduced bit for bit"


@pytest.mark.parametrize("column,change,verdict", [
    ("auc", .019, "reproduced within tolerance"), ("auc", .021, "not reproduced"), ("eer", .1, "reproduced within tolerance"), ("eer", .2, "not reproduced"),
    ("threshold", .5, "reproduced within tolerance"), ("n_real", 1, "not reproduced"), ("coverage", -1e-9, "not reproduced"), ("auc", np.nan, "not reproduced")])
def test_tolerance(committed, column, change, verdict):
    got = ev.compare(committed.assign(**{column: committed[column] + change}), committed, .02)
    assert got.verdict == verdict and set(got.rows.column) == {column} and len(got.rows) == len(committed)


@pytest.mark.parametrize("column,verdict", [("checkpoint_hash", "reproduced within tolerance"), ("split_hash", "not reproduced"), ("params_hash", "not reproduced")])
def test_fingerprints(committed, column, verdict): assert ev.compare(committed.assign(**{column: "x"}), committed, .02).verdict == verdict


def test_missing_and_additional_rows_are_named(committed):
    got = ev.compare(committed.iloc[1:], committed.iloc[:-1], .02)
    assert got.verdict == "not reproduced" and got.rows.column.tolist() == ["row", "row"] and sorted(got.rows.new) == ["missing", "there"]


def test_undefined_on_both_sides_is_equal(committed):
    undefined = committed.assign(auc=np.nan)
    assert ev.compare(undefined, undefined, 0.).verdict == "reproduced bit for bit"


# where numbers come from -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("corpora, forged, kind, label", [
    (["a"], ["a", "b"], ev.EMBEDDED, "a, test split (embedded corpus)"),
    (["a", "b"], ["b", "a"], ev.EMBEDDED, "a+b, test split (embedded corpora)"),
    (["a", "mine", "a"], ["a"], ev.PARTLY, "a+mine, test split (partly embedded: a; real: mine)"),
    (["mine"], ["a"], ev.REAL, "mine, test split")])
def test_three_answers_to_whether_corpora_are_embedded(corpora, forged, kind, label):
    assert ev.origin(corpora, forged) == kind and ev.named(corpora, forged, "test split") == label


def test_no_corpus_is_not_a_real_one():
    with pytest.raises(ValueError, match="no corpus"): ev.named([], ["a"])
