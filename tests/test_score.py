"A file gets a verdict or a reason why not; names from outside stay text; no file stops the rest; and what a model's card says comes from validation."
import csv, json, os, pickle, re, shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import av, numpy as np, pandas as pd, pytest, soundfile, torch, typer, yaml
from typer.testing import CliRunner
from cad_nb.core import hash_of, read_params, seed_all, typed
from cad_nb.data.clips import Batch
from cad_nb.forge.corpus import ForgeParams, forge_clip, plan_fakeavceleb
from cad_nb.judge.calibration import MODES, VIEWS, Card, CardError, answers, by_card, calibrated, forged_of, make_card, only, platt, provenance, read_card, responses, write_card
from cad_nb.learn import load_checkpoint, save_checkpoint
from cad_nb.media.windows import Window
from cad_nb.models.build import build
from cad_nb.models.cad import EVIDENCE, VARIANTS
from cad_nb.run import score as S
from cad_nb.run.cli import app, plainly
from cad_nb.show.plots import file_timeline
from conftest import ROOT
from test_models import PARAMS, clips as raw_clips

PREPARE = dict(detector="mtcnn", detect_every=5, min_face_px=32, face_px=16, mouth_px=16, sharp=2, frames=16, trim_silence=True, windows=1, max_s=60.)
TELLS = platt([0, 1]*8, np.arange(16) % 2*2. - 1) | dict(tells=True)
KEYS = "file status coverage score verdict forced evidence distance timeline tracks model warnings".split()


def checkpoint(folder, variant="cad", **card):
    "An untrained model with a card that claims more."
    seed_all(0)
    save_checkpoint(folder, build(replace(PARAMS, **VARIANTS[variant]), 16, 16), dict(face_px=16, mouth_px=16))
    claims = dict(trained_on=dict(corpora=["forged"], embedded=True), prepare=PREPARE, precision="float32", threshold=dict.fromkeys(MODES, .5),
        calibration={m: dict.fromkeys(EVIDENCE, TELLS) for m in MODES}, spread=dict.fromkeys(MODES), domain=dict.fromkeys(VIEWS),
        references=dict(face=np.full((2, 2, 16, 16, 3), 90, np.uint8), mouth=np.full((2, 16, 16, 16), 90, np.uint8), audio=np.full((2, 16*640), .01, np.float32)))
    write_card(folder, Card(hash_of(folder/"model.safetensors"), **claims | card))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A forged clip; the same without sound; its sound alone; no media at all."
    root = tmp_path_factory.mktemp("files")
    params = typed(read_params(ROOT/"params.yaml")["forge"], ForgeParams, "forge")
    job = plan_fakeavceleb(replace(params, frames=50), 0)[0]
    forge_clip(job, root)
    shutil.copy(root/job.path, root/"whole.mp4")
    with av.open(root/"whole.mp4") as old, av.open(root/"mute.mp4", "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None: packet.stream = stream; new.mux(packet)
    with av.open(root/"whole.mp4") as old: soundfile.write(root/"sound.wav", np.concatenate([f.to_ndarray().mean(0) for f in old.decode(audio=0)]), old.streams.audio[0].rate)
    (root/"text.mp4").write_text("no media")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return checkpoint(tmp_path_factory.mktemp("model"))

@pytest.fixture(scope="module")
def judge(folder): return S.load_judge(folder, "cpu")

@pytest.fixture(scope="module")
def whole(files, judge): return S.score_file(files/"whole.mp4", judge)


def strange(judge, far=3.):
    "The same judge, for whom everything lies that far from home."
    domain = {k: SimpleNamespace(distance=lambda x: np.full(len(x), far)) for k in VIEWS}
    return replace(judge, card=replace(judge.card, domain=domain, together=1.))


# one file ------------------------------------------------------------------------------------------------------------

def test_the_record_is_the_promised_one(whole, files):
    r = whole.record
    assert list(r) == KEYS and r["status"] == "ok" and r["verdict"] in ("real", "fake") and r["file"] == str(files/"whole.mp4")
    assert list(r["evidence"]) == ["video", "audio", "sync"] and list(r["model"]) == ["checkpoint_hash", "trained_on", "threshold", "calibration", "test"] and r["model"]["test"] is None
    assert all(list(t) == ["start_s", "end_s", "score", "video", "audio", "sync", "offset_frames", "status", "distance", "refused"] for t in r["timeline"])
    judged = [t for t in r["timeline"] if t["score"] is not None]
    assert len(judged) == len([t for t in r["timeline"] if t["status"] == "ok"]) >= 3 and 48/50 - .03 <= r["coverage"] <= 1
    assert all(t["score"] is None for t in r["timeline"] if t["status"] != "ok")
    assert json.loads(json.dumps(r, allow_nan=False)) == r


def test_the_score_is_the_mean_logit_calibrated(whole):
    logits = [row["fake"] for row in whole.found.rows if row["mode"] == "both"]
    assert whole.record["score"] == pytest.approx(float(calibrated(np.mean(logits), TELLS)), abs=1e-4)
    assert (whole.record["verdict"] == "fake") == (whole.record["score"] >= .5)


def test_a_window_is_what_the_model_was_trained_on(files, judge):
    "The same crops, whether they come through a shard or straight from the file."
    from cad_nb.data.shards import sharp_frames
    windows = [w for w in S.read_windows(files/"whole.mp4", judge.detector, judge.options, 16) if w.face is not None]
    batch = S.as_batch(windows, PREPARE)
    n = len(windows)
    assert n >= 3 and batch.face.shape == (n, 2, 16, 16, 3) and batch.mouth.shape == (n, 16, 16, 16) and batch.audio.shape == (n, 16*640)
    assert np.array_equal(batch.face[1].numpy(), windows[1].face[sharp_frames(16, 2)]) and np.array_equal(batch.audio[2].numpy(), windows[2].audio)


@pytest.mark.parametrize("name, mode, unknown, words", [("mute.mp4", "video", ["audio", "sync"], "picture alone"), ("sound.wav", "audio", ["video", "sync"], "sound alone")])
def test_half_a_file_gets_half_a_verdict(files, judge, name, mode, unknown, words):
    judged = S.score_file(files/name, judge)
    r = judged.record
    assert judged.mode == mode and r["verdict"] in ("real", "fake") and r["status"] in ("no_audio", "no_video")
    assert all(r["evidence"][k] is None for k in unknown) and r["evidence"][mode] is not None
    assert any(words in w for w in r["warnings"])


@pytest.mark.parametrize("name", ["text.mp4", "missing.mp4", "."])
def test_nothing_to_judge(files, judge, name):
    judged = S.score_file(files/name, judge)
    r = judged.record
    assert r["verdict"] == "cannot_judge" and r["score"] is None and r["coverage"] == 0 and r["status"] != "ok" and judged.why
    assert "Cannot judge" in S.verdict_page(judged, judge, files/name)


def test_far_from_home_there_is_no_verdict_unless_asked(files, judge):
    far = strange(judge)
    judged, forced = (S.score_file(files/"whole.mp4", far, force) for force in (False, True))
    assert judged.record["verdict"] == "cannot_judge" and judged.record["score"] is None and set(judged.record["evidence"].values()) == {None}
    assert "3.00 times as far" in " ".join(judged.record["warnings"]) and "What drove it" in (text := S.verdict_page(judged, far, files/"whole.mp4")) and "Heat on a face" in text
    assert all(t["score"] is None and t["audio"] is None for t in judged.record["timeline"]) and not judged.record["forced"] and "none of them counts" in text and "this is no evidence" in text
    assert forced.record["score"] is not None and any(w.startswith("--force") for w in forced.record["warnings"])
    assert forced.record["forced"] and "by --force" in S.line(forced, files/"whole.json") and "The verdict was forced" in S.verdict_page(forced, far, files/"whole.mp4") and S.summary_row(forced, files/"whole.json")["forced"]
    assert not S.score_file(files/"whole.mp4", judge, force=True).record["forced"]   # near home there is nothing to force
    assert S.score_file(files/"whole.mp4", strange(judge, .9)).record["verdict"] != "cannot_judge"


def test_a_little_odd_in_every_view_is_odd(files, judge):
    "No view lies outside by itself, and all three near the limit are further out than 99 % of the known clips ever are at once; a card of before knows no such limit."
    near = strange(judge, .95)
    assert S.score_file(files/"whole.mp4", near).record["verdict"] != "cannot_judge"
    tight = S.score_file(files/"whole.mp4", replace(near, card=replace(near.card, together=.8))).record
    assert tight["verdict"] == "cannot_judge" and tight["distance"]["together"] == pytest.approx(.95/.8) and any("All of it together lies just outside" in w for w in tight["warnings"])
    old = S.score_file(files/"whole.mp4", replace(near, card=replace(near.card, together=None))).record
    assert old["verdict"] != "cannot_judge" and old["distance"]["together"] is None


def test_what_refused_is_told_for_each_window_and_in_the_box(files, judge):
    odd = strange(judge); odd.card.domain["face"], odd.card.domain["sound"] = SimpleNamespace(distance=lambda x: np.full(len(x), .5)), SimpleNamespace(distance=lambda x: np.full(len(x), 1.2))
    judged = S.score_file(files/"whole.mp4", odd)
    r, page = judged.record, S.verdict_page(judged, odd, files/"whole.mp4")
    together = ((.5**2 + 3**2 + 1.2**2)/3)**.5
    assert r["distance"] == pytest.approx(dict(face=.5, mouth=3., sound=1.2, together=together), abs=1e-3) and {tuple(t["refused"]) for t in r["timeline"] if t["status"] == "ok"} == {("mouth", "sound", "together")}
    assert all(t["distance"] == r["distance"] for t in r["timeline"] if t["status"] == "ok")
    box = re.search(r'<div class="verdict.*?</div>', page, re.S)[0]
    assert "face 0.50, mouth 3.00, sound 1.20, together 1.89" in box and "The sound lies just outside of" in box and "mouth lies far outside of" in box and "The face" not in box


@pytest.mark.parametrize("distance, words", [(1.1, "just outside of"), (1.3, "just outside of"), (1.5, "lies outside of"), (3., "far outside of"), (9., "unlike anything")])
def test_words_grow_with_the_distance(distance, words): assert words in S.strangeness("It", distance) and f"{distance:.2f} times" in S.strangeness("It", distance)

def test_a_distance_beyond_the_limit_does_not_read_as_the_limit(): assert "1.0003 times" in S.strangeness("It", 1.0003)


def test_a_verdict_says_that_unseen_methods_do_worse(files, judge):
    spread = {m: dict(real=np.linspace(0, .4, 101).tolist(), fake=np.linspace(.3, 1, 101).tolist()) for m in MODES}
    known = replace(judge, card=replace(judge.card, spread=spread))
    assert "of other kinds the model misses more" in " ".join(S.in_words(S.score_file(files/"whole.mp4", known), known.card))


def test_a_clip_of_the_model_s_own_corpus_is_named(files, judge, tmp_path):
    from cad_nb.data.manifest import as_manifest, write_manifest
    corpus = tmp_path/"data"/"FakeAVCeleb_v1.2"
    for part in ("train", "test", "strange"): (corpus/"RealVideo-RealAudio"/part).mkdir(parents=True); shutil.copy(files/"whole.mp4", corpus/"RealVideo-RealAudio"/part/"a.mp4")
    shutil.copy(ROOT/"params.yaml", tmp_path)
    write_manifest(tmp_path/"out"/"features"/"manifest.csv", as_manifest([dict(corpus="fakeavceleb", path=f"RealVideo-RealAudio/{part}/a.mp4", split=part) for part in ("train", "test")]))
    folder = checkpoint(tmp_path/"out"/"models"/"cad")
    assert S.load_judge(folder, "cpu").project == tmp_path and judge.project is None
    said = {part: S.acquaintance(corpus/"RealVideo-RealAudio"/part/"a.mp4", tmp_path) for part in ("train", "test", "strange")}
    assert "trained on: it knows" in said["train"] and "test part" in said["test"] and "may know these people" in said["strange"]
    assert S.acquaintance(files/"whole.mp4", tmp_path) == "" == S.acquaintance(corpus/"RealVideo-RealAudio"/"train"/"a.mp4", None)
    own = replace(judge, project=tmp_path)
    judged = S.score_file(corpus/"RealVideo-RealAudio"/"train"/"a.mp4", own)
    assert said["train"] in judged.record["warnings"] and "knows this very recording" in S.verdict_page(judged, own, corpus/"RealVideo-RealAudio"/"train"/"a.mp4")


def test_a_model_that_cannot_tell_is_not_asked(files, judge):
    blind = replace(judge, card=replace(judge.card, threshold=dict.fromkeys(MODES)))
    r = S.score_file(files/"whole.mp4", blind, force=True).record
    assert r["verdict"] == "cannot_judge" and "cannot tell" in " ".join(r["warnings"])
    deaf = replace(judge, card=replace(judge.card, calibration={m: dict.fromkeys(EVIDENCE, TELLS) | dict(audio=TELLS | dict(tells=False)) for m in MODES}))
    r = S.score_file(files/"whole.mp4", deaf).record
    assert r["evidence"]["audio"] is None and r["evidence"]["video"] is not None and r["verdict"] != "cannot_judge"


def test_a_high_window_in_a_genuine_file_is_named(whole, judge):
    rows = [dict(r, fake=-3.) for r in whole.found.rows if r["mode"]]; rows[1]["fake"] = 4.
    said = S.cautions(rows, "both", dict(coverage=1., verdict="real"), judge, False)
    assert any(f"1 of {len(rows)} windows score above the threshold, the highest at 0.6 s" in s for s in said)


def test_memory_does_not_grow_with_the_file(judge):
    g = np.random.default_rng(0)
    found = S.Findings()
    for i in range(0, 400, 8):
        windows = [Window("ok", "", 0, 16*(i + k), 16, g.integers(0, 255, (16, 16, 16, 3)).astype(np.uint8), g.integers(0, 255, (16, 16, 16)).astype(np.uint8), g.normal(size=10240).astype(np.float32)*.1, thumb=np.zeros((9, 16, 3), np.uint8)) for k in range(8)]
        S.add_windows(found, windows, judge)
    assert len(found.rows) == 400 and len(found.thumbs.kept) <= found.thumbs.most and sum(map(len, found.tops.values())) == S.TOPS
    best = sorted((r["fake"] for r in found.rows), reverse=True)[:S.TOPS]
    assert sorted((t[0] for t in found.tops["both"]), reverse=True) == best


# the page ------------------------------------------------------------------------------------------------------------

def test_the_page_stands_alone_and_says_what_the_model_is_worth(whole, judge, files):
    page = S.verdict_page(whole, judge, files/"whole.mp4")
    assert set(re.findall(r'src(?:set)?="([^"]{11})', page)) == {"data:image/"} and not re.search("<script|https?:", page) and "default-src 'none'" in page
    assert "never seen a real face" in page and "means nothing yet" in page and "verdict stern\"" not in page
    assert page.count("<figure>") == 2 + S.TOPS and hash_of(files/"whole.mp4") in page and all(alt for alt in re.findall(r'alt="([^"]*)"', page))


def test_only_a_model_that_knows_faces_may_accuse_in_colour(whole, judge, files):
    knowing = replace(judge, card=replace(judge.card, trained_on=dict(corpora=["real"], embedded=False)))
    fake = replace(whole, record=whole.record | dict(verdict="fake"), why=[])
    assert 'class="verdict stern"' in S.verdict_page(fake, knowing, files/"whole.mp4")
    assert 'class="verdict stern"' not in S.verdict_page(fake, judge, files/"whole.mp4")


def claims(judge, **trained_on):
    "The same judge, whose card names other clips."
    return replace(judge, card=replace(judge.card, trained_on=trained_on))


@pytest.mark.parametrize("trained_on, stern, words, label", [
    (provenance(["heads", "more"], ["more", "heads", "unused"]), False, ["never seen a real face", "embedded corpora alone"], "heads+more (embedded corpora)"),
    (provenance(["heads", "mine"], ["heads"]), True, ["of which heads is embedded"], "heads+mine (partly embedded: heads; real: mine)"),
    (provenance(["mine"], ["heads"]), True, ["trained on mine. On people"], "mine"),
    (dict(corpora=["heads"], embedded=True), False, ["never seen a real face"], "heads (embedded corpus)")])        # a card of an earlier version
def test_an_embedded_corpus_beside_a_real_one_is_named_wherever_the_model_speaks(whole, judge, files, trained_on, stern, words, label):
    told = claims(judge, **trained_on)
    judged = S.score_file(files/"whole.mp4", told)
    fake = replace(judged, record=judged.record | dict(verdict="fake"), why=[])
    page, line, row = S.verdict_page(fake, told, files/"whole.mp4"), S.line(fake, Path("x.html")), S.summary_row(fake, Path("x.html"))
    assert ('class="verdict stern"' in page) == stern and label in page and row["trained_on"] == label and list(row) == S.SUMMARY
    assert all(w in judged.record["warnings"][0] and w in page for w in words) and ("never seen" in page) == (not stern) and judged.record["model"]["trained_on"] == trained_on
    assert ("by a model of embedded corpora alone" in line, "by a model of partly embedded corpora" in line) == (not stern, "partly" in label)
    assert type(trained_on["embedded"]) is bool and trained_on["embedded"] == (not stern)


def test_pseudo_fakes_are_told(judge, files):
    forged = claims(judge, **provenance(["mine"], [], "forged"))
    judged = S.score_file(files/"whole.mp4", replace(forged, card=replace(forged.card, spread={m: dict(real=np.linspace(0, .4, 101).tolist(), fake=np.linspace(.3, 1, 101).tolist()) for m in MODES})))
    page = S.verdict_page(judged, forged, files/"whole.mp4")
    assert "pseudo-fakes, made of the genuine clips" in judged.record["warnings"][0] and "mine, by pseudo-fakes" in page
    assert "pseudo-fakes, of the kinds" in " ".join(S.in_words(judged, replace(forged.card, spread={m: dict(real=[0.]*101, fake=[1.]*101) for m in MODES})))
    assert "pseudo-fakes" not in S.knows(judge.card)


TESTED = dict(embedded=True, genuine=40, accused=10, fakes=60, caught=45, held_out=20, held_out_caught=5)

def test_the_page_quotes_what_the_threshold_did_on_test_clips_of_these_weights(files, tmp_path):
    folder = checkpoint(tmp_path/"out"/"models"/"cad")
    summary = tmp_path/"out"/"metrics"/"summary.json"; summary.parent.mkdir(parents=True)
    mine = dict(checkpoint_hash=hash_of(folder/"model.safetensors"), both=dict(heads=TESTED, mine=TESTED | dict(embedded=False, accused=4)))
    summary.write_text(json.dumps(dict(corpus="heads", verdicts=dict(naive=dict(checkpoint_hash="other"), cad=mine))))
    judge = S.load_judge(folder, "cpu")
    judged = S.score_file(files/"whole.mp4", judge)
    page = S.verdict_page(judged, judge, files/"whole.mp4")
    assert judged.record["model"]["test"] == mine["both"] and "the same threshold accused 25% of 40 genuine clips and caught 75% of 60 fakes (25% of 20 whose method it had not met) of heads (embedded corpus); accused 10% of 40" in page
    assert S.score_file(files/"mute.mp4", judge).record["model"]["test"] is None                       # nothing of that kind was tested
    for other in ("{", "[]", json.dumps(dict(verdicts=dict(cad=mine | dict(checkpoint_hash="another")))), json.dumps(dict(verdicts=dict(cad=mine | dict(both=dict(heads=dict(genuine=1)))))), json.dumps(dict(corpus="heads"))):
        summary.write_text(other)
        assert S.tested(folder, mine["checkpoint_hash"]) is None
    summary.unlink()
    judge = S.load_judge(folder, "cpu")
    assert judge.tested is None and "Only shares of validation clips are known" in S.verdict_page(S.score_file(files/"whole.mp4", judge), judge, files/"whole.mp4")


def test_panels_of_a_page_share_their_scales(whole, judge):
    tops = sorted(whole.found.tops["both"], key=lambda t: t[:2], reverse=True)
    loud = replace(tops[0][3], face=tops[0][3].face.clone()); loud.face[:] = 255 - loud.face
    figures = [f for _, f in S.panels([tops[0][:3] + (loud,), tops[1]], judge)]
    bars = [next(ax for ax in f.axes if "logit moved" in ax.get_xlabel()) for f in figures]
    heat = [[im.get_clim()[1] for ax in f.axes for im in ax.images[1:2]] for f in figures]
    assert bars[0].get_xlim() == bars[1].get_xlim() and heat[0] == heat[1] and len(heat[0]) == 3


@pytest.mark.filterwarnings("error")
def test_timelines_of_odd_files():
    columns = ["start_s", "end_s", "score", "video", "audio", "sync", "offset_frames"]
    for rows in ([], [[0, 1, np.nan, np.nan, np.nan, np.nan, np.nan]], [[0, 1, .5, .5, np.nan, np.nan, np.nan], [5000, 5001, .9, 1, 1, 1, -3]]):
        for thumbs in ([], [(.5, np.zeros((90, 160, 3), np.uint8))]*3): file_timeline(pd.DataFrame(rows, columns=columns, dtype=float), 5400., "made up", thumbs, .5, 3.7).canvas.draw()


# the command ---------------------------------------------------------------------------------------------------------

def cad(*words): return CliRunner().invoke(app, ["score", *map(str, words)])


def test_names_from_outside_stay_text(files, folder, tmp_path):
    "Markup, quotes, lines, escape codes, formulas and bytes that are no text; with a broken file among them, and two of one name."
    names = [b"<script>alert(1)<script>.mp4", b"\"quo'ted\" & co.mp4", b"two\nlines\x1b[31m.mp4", b"caf\xe9\xff.mp4", b"=1+1.mp4", "\u202egpj.mp4".encode(), b"sub/=1+1.mp4"]
    inputs = tmp_path/"in"; (inputs/"sub").mkdir(parents=True)
    for name in names: shutil.copy(files/"mute.mp4", os.path.join(os.fsencode(inputs), name))
    Path(os.fsdecode(os.path.join(os.fsencode(inputs), b"0 broken\xe9.mp4"))).write_bytes((files/"whole.mp4").read_bytes()[:300]); (inputs/"notes.txt").write_text("left out"); os.mkfifo(inputs/"pipe.mp4")
    done = cad(inputs, "--model", folder, "--out", tmp_path/"out")
    assert done.exit_code == 0, done.output
    assert "2 files in folders do not look like recordings" in done.output and "\x1b" not in done.output and "\u202e" not in done.output
    pages, records = sorted((tmp_path/"out").glob("*.html")), [json.loads(p.read_text()) for p in sorted((tmp_path/"out").glob("*.json"))]
    assert len(pages) == len(records) == len(names) + 1 and all(re.fullmatch(r"[\w.-]+", p.name) for p in pages)
    assert sum(r["verdict"] == "cannot_judge" for r in records) == 1 and any(r["file"].endswith(r"caf\xe9\xff.mp4") for r in records)
    for page in pages: assert not re.search(r"<script|\x1b|\u202e|<[^>]*alert", page.read_text(encoding="utf-8"))
    with open(tmp_path/"out"/"summary.csv", newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    assert len(rows) == len(names) + 1 and {r["result"] for r in rows} == {p.name for p in pages} and not any(v[:1] in tuple("=+@") for r in rows for v in r.values())
    table = [S.summary_row(replace(S.broken("=1+1.mp4", SimpleNamespace(card=read_card(folder)), ValueError())), Path("x"))]
    assert table[0]["file"] == "'=1+1.mp4"


def test_exit_codes(files, folder, tmp_path):
    both = [files/"whole.mp4", files/"text.mp4", "--model", folder, "--out", tmp_path, "--no-page"]
    assert cad(*both).exit_code == 0 and not list(tmp_path.glob("*.html"))
    assert cad(*both, "--fail-on", "cannot_judge").exit_code == 1
    assert cad(files/"mute.mp4", *both[2:], "--fail-on", "cannot_judge").exit_code == 0
    assert cad(*both, "--fail-on", "perhaps").exit_code == 2
    assert cad(files/"empty folder", "--model", tmp_path/"nowhere", "--out", tmp_path).exit_code == 2
    (tmp_path/"file").write_text(""); assert cad(files/"text.mp4", "--model", folder, "--out", tmp_path/"file").exit_code == 2
    assert "Exit codes" in CliRunner().invoke(app, ["score", "--help"]).output


@pytest.mark.parametrize("words, said", [(["--model", "nowhere"], "no folder nowhere with a model"), (["--device", "gpu"], "--device gpu cannot be used here"), (["--out", "taken/x"], "--out taken/x cannot be a folder")])
def test_a_wrong_option_is_named(files, folder, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path); (tmp_path/"taken").write_text("a file")
    given = dict(zip(words[::2], words[1::2]))
    ran = cad(files/"text.mp4", *words, *([] if "--model" in given else ["--model", folder]), *([] if "--out" in given else ["--out", tmp_path/"out"]))
    assert ran.exit_code == 2 and said in ran.output and "Traceback" not in ran.output


def test_broken_yaml_is_the_fault_of_params_yaml(capsys):
    @plainly
    def command(): yaml.safe_load("study:\n  seeds: [0\n  epochs: 1\n")
    with pytest.raises(typer.Exit): command()
    assert re.match(r"cad: params.yaml cannot be read from line \d+ on: .*git checkout params.yaml", capsys.readouterr().err)


def test_a_file_that_cannot_be_opened_has_one_reason(files, judge):
    r = S.score_file(files/"text.mp4", judge)
    assert r.why and not any("no window of the file" in w for w in r.why)


def test_a_forced_verdict_says_so_first(files, judge):
    judged = S.score_file(files/"whole.mp4", strange(judge), force=True)
    page = S.verdict_page(judged, judge, files/"whole.mp4")
    assert ", by force" in page and "says nothing of this file" in page and not any("On test clips" in w or "Among the validation clips" in w for w in S.in_words(judged, judge.card))


def test_a_slip_of_the_pen(files, folder, tmp_path):
    slip = cad(files/"whale.mp4", "--model", folder, "--out", tmp_path/"a")
    assert slip.exit_code == 2 and "there is no file" in slip.output and f"did you mean {files/'whole.mp4'}?" in slip.output and not (tmp_path/"a").exists()
    assert cad(files/"whale.mp4", files/"nowhere"/"x.mp4", "--model", folder, "--out", tmp_path/"a").exit_code == 2
    some = ["--model", folder, "--out", tmp_path/"b", "--no-page"]
    done = cad(files/"whale.mp4", files/"mute.mp4", *some)
    assert done.exit_code == 0 and "there is no file" in done.output
    with open(tmp_path/"b"/"summary.csv", newline="", encoding="utf-8") as f: assert [r["status"] for r in csv.DictReader(f)] == ["missing", "no_audio"]
    assert cad(files/"whale.mp4", files/"mute.mp4", *some, "--fail-on", "cannot_judge").exit_code == 1


def test_the_pace_is_told_so_that_it_can_be_read(whole):
    fast, slow = (S.line(replace(whole, took_s=s), Path("x.html")) for s in (.5, 300.))
    assert re.search(r"in 0\.5 s \(4\.[01] x real time\)", fast) and "in 300.0 s. ->" in slow and "real time" not in slow


def test_without_a_model(tmp_path, monkeypatch):
    (tmp_path/"params.yaml").write_text("seed: 0\n"); monkeypatch.chdir(tmp_path)
    done = cad("clip.mp4")
    assert done.exit_code == 2 and "make reproduce" in done.output and "Traceback" not in done.output


def test_one_bad_file_never_stops_the_rest(files, judge, tmp_path, monkeypatch):
    real = S.read_windows
    def breaks(path, *a, **k):
        if Path(path).name == "mute.mp4": raise RuntimeError("a fault <b>nobody</b> knew")
        return real(path, *a, **k)
    monkeypatch.setattr(S, "read_windows", breaks)
    done = list(S.score_files([files/"mute.mp4", files/"whole.mp4"], judge, tmp_path))
    assert [j.record["status"] for _, j, _ in done] == ["error", "ok"] and list(done[0][1].record) == KEYS
    assert "a fault &lt;b&gt;nobody" in done[0][2].read_text()


@pytest.mark.parametrize("name", ["/proc/self/mem", ".", "/nowhere"])
def test_files_that_cannot_be_read_have_no_fingerprint(name): assert S.fingerprint(name) == "–"


def test_files_of_folders(tmp_path):
    for name in ("b.mp4", "a/c.WAV", "a/notes.txt"): (tmp_path/name).parent.mkdir(exist_ok=True); (tmp_path/name).write_text("")
    (tmp_path/"loop").symlink_to(tmp_path)
    found, left = S.files_in([tmp_path, tmp_path/"b.mp4", tmp_path/"a"/"notes.txt"])
    assert [f.name for f in found] == ["b.mp4", "c.WAV", "notes.txt"] and left == 1


# the card ------------------------------------------------------------------------------------------------------------

class Toy:
    "Clips of eight people, of which the model can see who is fake: the same face twice, once with a brightness that betrays it."
    def __init__(self, n, seed):
        y = np.arange(n) % 2
        self.rows = pd.DataFrame(dict(id=[f"clip{i}" for i in range(n)], identity_source=[f"person{i//4}" for i in range(n)], y=y, y_audio=0))
        raw = raw_clips(n=4, seed=seed)
        t = lambda v: torch.tensor(v, dtype=torch.float)
        self.whole = Batch(raw.face[:1].repeat(n, 1, 1, 1, 1), raw.mouth[:1].repeat(n, 1, 1, 1), raw.audio[:1].repeat(n, 1) + .02*torch.randn(n, raw.audio.shape[1], generator=torch.Generator().manual_seed(seed)),
            torch.ones(n).bool(), torch.ones(n).bool(), t(y), t(y), t(0*y), t(0*y), torch.arange(n))
        self.whole.face[y == 1] //= 3
        self.whole.has_audio[:4] = False

    def batch(self, idx): return self.whole.map(lambda t: t[torch.as_tensor(idx)])


@pytest.fixture(scope="module")
def carded(folder): 
    model, _ = load_checkpoint(folder)
    return make_card(model, folder, Toy(48, 0), Toy(32, 1), lambda c: [c.whole.map(lambda t: t[i:i+8]) for i in range(0, len(c.rows), 8)], dict(corpora=["toy"], embedded=True), PREPARE, "float32")


def test_the_card_comes_from_validation(carded, folder, tmp_path):
    fake = carded.calibration["video"]["fake"]
    assert fake["n_real"] + fake["n_fake"] == 32 and carded.calibration["both"]["fake"]["n_fake"] == 14
    assert carded.calibration["video"]["audio"] is None and carded.calibration["both"]["audio"] is None        # not said; and one class only
    assert (carded.threshold["video"] is None) == (not fake["tells"]) and set(carded.domain) == set(VIEWS)
    for name in ("model.safetensors", "model.json"): shutil.copy(folder/name, tmp_path)
    write_card(tmp_path, carded)
    again = read_card(tmp_path)
    assert again.together == carded.together and .3 < carded.together < 1.001
    assert len(again.references["face"]) == 4 and np.array_equal(again.references["face"], carded.references["face"])
    assert all(np.array_equal(again.domain[k].whiten, carded.domain[k].whiten) for k in VIEWS) and again.threshold == carded.threshold


def test_the_domain_knows_its_own_and_no_other(carded, folder):
    model, _ = load_checkpoint(folder)
    own, foreign = Toy(16, 2).whole, Toy(16, 3).whole
    foreign.face = torch.randint(0, 2, foreign.face.shape, dtype=torch.uint8)*255
    own.face = Toy(16, 1).whole.face
    near, far = (carded.domain["face"].distance(answers(model, b, "float32").seen["face"]) for b in (own, foreign))
    assert near.max() <= 1 + 1e-6 and far.min() > 1


def test_only_leaves_nothing_of_the_other(carded):
    b = Toy(8, 0).whole
    alone = only(b, "audio")
    assert len(alone) == 4 and not alone.face.any() and not alone.has_video.any() and alone.audio.any()
    assert len(only(b, "video")) == 8 and not only(b, "video").audio.any() and len(only(b, "both")) == 4


def test_cards_that_cannot_be_trusted(tmp_path):
    checkpoint(tmp_path)
    card = json.loads((tmp_path/"card.json").read_text())
    class Bomb:
        def __reduce__(self): return (Path.touch, (tmp_path/"executed",))
    for bad in (b"", b"{", b"[]", pickle.dumps(Bomb()), json.dumps({k: v for k, v in card.items() if k != "threshold"}).encode(), json.dumps(card | dict(threshold=dict(both=.5))).encode(), json.dumps(card | dict(more=1)).encode()):
        (tmp_path/"card.json").write_bytes(bad)
        with pytest.raises(CardError, match="cannot be read"): read_card(tmp_path)
    assert not (tmp_path/"executed").exists()
    checkpoint(tmp_path)
    (tmp_path/"card.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CardError, match="not the one"): read_card(tmp_path)
    (tmp_path/"card.safetensors").unlink()
    with pytest.raises(CardError, match="has no card.safetensors"): read_card(tmp_path)
    checkpoint(tmp_path)
    with open(tmp_path/"model.safetensors", "ab") as f: f.write(b"x")
    with pytest.raises(CardError, match="other weights"): read_card(tmp_path)


@pytest.mark.parametrize("variant", ["cad", "naive", "sync_only", "video_only"])
def test_each_encoder_looks_once_and_sees_the_same(variant, monkeypatch):
    "What the layers see comes from the very look that the verdict rests on, also in a variant that has to be asked for some of it."
    seed_all(0)
    model = build(replace(PARAMS, **VARIANTS[variant]), 16, 16).eval()
    batch, asked = Toy(6, 0).whole, []
    for encoder, ask in ((model.video, "tokens"), (model.video, "sync"), (model.audio, "tokens")):
        plain = getattr(type(encoder), ask)
        monkeypatch.setattr(type(encoder), ask, lambda self, x, plain=plain, name=f"{type(encoder).__name__}.{ask}": (asked.append(name), plain(self, x))[1])
    said = answers(model, batch, "float32")
    assert sorted(asked) == ["CompactAudio.tokens", "CompactVideo.sync", "CompactVideo.tokens"] and not {"tokens", "sync"} & {*vars(model.video), *vars(model.audio)}
    with torch.no_grad(): view, verdict = model.views(batch), model.read(batch)
    np.testing.assert_array_equal(said.logits, verdict.logits.numpy())
    for name, (encoder, ask, x) in dict(face=(model.video, "tokens", view.face), mouth=(model.video, "sync", view.mouth), sound=(model.audio, "tokens", view.spec)).items():
        with torch.no_grad(): alone = responses(encoder, getattr(encoder, ask), x)[1]
        there = (batch.has_audio if name == "sound" else batch.has_video).numpy()
        np.testing.assert_array_equal(said.seen[name][there], alone.numpy()[there]); assert np.isnan(said.seen[name][~there]).all()


def test_clips_are_counted_by_their_richest_windows_and_only_where_the_model_is_asked(carded):
    tells = dict(scale=1., bias=0.)
    card = replace(carded, threshold=dict(both=.5, video=.5, audio=None), calibration=dict.fromkeys(MODES, dict(fake=tells)))
    windows = pd.DataFrame([("a", -1., True, True), ("a", -1., True, True), ("a", 9., True, False), ("b", 2., False, True), ("c", 2., True, False), ("d", 2., False, False)], columns=["id", "logit", "has_video", "has_audio"])
    clips = pd.DataFrame(dict(id=list("abcde"), corpus=["x", "x", "y", "y", "y"], y=[0, 1, 1, 0, 0], y_video=[0, 0, 1, 0, 0], y_audio=[0, 1, 0, 0, 0], held_out=[False]*5)).astype(dict.fromkeys(["y", "y_video", "y_audio"], "Int64"))
    found = by_card(windows, clips, card, ["x"])
    assert set(found) == {"both", "video"} and set(found["both"]) == {"x"} and set(found["video"]) == {"y"}       # nobody is asked about sound alone; d and e show nothing
    assert found["both"]["x"] == dict(embedded=True, genuine=1, accused=0, fakes=0, caught=0, held_out=0, held_out_caught=0), "a window without sound does not count beside whole ones"
    assert found["video"]["y"] == dict(embedded=False, genuine=0, accused=0, fakes=1, caught=1, held_out=0, held_out_caught=0)
