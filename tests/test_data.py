"""The data room against hostile lists, killed runs, full disks and chance."""
import errno, json, os, signal, subprocess, sys, time
from dataclasses import fields, replace
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from cad_nb.core import SAMPLES_PER_FRAME, ParamsError, stream
from cad_nb.data import shards as shards_room
from cad_nb.data.clips import Batch, BatchParams, Clips, ahead, augment, draw_epoch, eval_batches, train_batches
from cad_nb.data.corpora import FAKEAVCELEB_CATEGORIES, CorpusParams, changed_corpora, fakeavceleb_labels, find_folder, is_watched, keep_listings, kept_listings, listings, read_corpora, read_corpus
from cad_nb.data.manifest import COLUMNS, LABELS, UnsafePath, any_fake, as_manifest, check_files, check_manifest, read_manifest, safe_join, write_manifest
from cad_nb.data.shards import Cut, DiskFull, PrepareParams, first_sound, prepare, window_starts
from cad_nb.data.splits import SplitParams, check_params, leak_report, make_splits, split_hash
from cad_nb.media.encode import write_clip

ONE_THREAD = dict(os.environ, OMP_NUM_THREADS="1")


# manifest ------------------------------------------------------------------------------------------------------------

def rows(n=6):
    return as_manifest([dict(corpus="toy", path=f"{i}.mp4", identity_source=f"id{i//2}", method="real" if i % 2 else "swap", y=1 - i % 2, y_video=1 - i % 2) for i in range(n)])


def test_manifest_survives_the_disk(tmp_path):
    df = rows().assign(reason=['a "quoted", reason', "two\nlines", "ünïcode", " spaced ", "", "-"], category=["NA", "nan", "None", "1.0", "007", "1e5"])
    pd.testing.assert_frame_equal(read_manifest(write_manifest(tmp_path/"m.csv", df)), df)


def test_empty_manifest_survives_the_disk(tmp_path):
    df = read_manifest(write_manifest(tmp_path/"m.csv", as_manifest([])))
    assert list(df) == list(COLUMNS) and len(df) == 0


def test_manifest_is_written_the_same_each_time(tmp_path):
    a, b = (write_manifest(tmp_path/f"{i}.csv", rows()).read_bytes() for i in range(2))
    assert a == b and b"\r" not in a


def test_spreadsheet_numbers_are_read_as_labels(tmp_path):
    f = write_manifest(tmp_path/"m.csv", rows())
    f.write_bytes(b"\xef\xbb\xbf" + f.read_bytes().replace(b",1,1,,,", b",1.0,1.0,,,"))
    assert read_manifest(f).y.tolist() == rows().y.tolist()


@pytest.mark.parametrize("change, message", [
    (dict(y=2), "not 0, 1"), (dict(y_sync=-1), "not 0, 1"), (dict(y=0), "real as a whole"), (dict(split="dev"), "none of train"), (dict(id="x"), "share an id"),
    (dict(y=1, y_video=0, y_audio=0, y_sync=0), "all parts real"), (dict(y=pd.NA), "no `y`")])
def test_broken_manifest_is_refused(change, message):
    df = rows()
    for k,v in change.items(): df[k] = pd.array([v]*len(df), dtype="Int64") if k in LABELS else v
    with pytest.raises(ValueError, match=message): check_manifest(df)


def test_labels_that_are_words_are_refused():
    with pytest.raises(ValueError, match="0, 1 or empty"): as_manifest([dict(corpus="a", path="b", y="fake")])


def test_read_manifest_names_the_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare"): read_manifest(tmp_path/"none.csv")
    (tmp_path/"m.csv").write_text("id,path,corpus,method,ySync\n")
    with pytest.raises(ValueError, match="column `y` is missing"): read_manifest(tmp_path/"m.csv")


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, None])]*3), min_size=1, max_size=20))
def test_any_fake_is_three_valued_or(parts):
    for p,y in zip(parts, any_fake(parts)):
        assert (y == 1) if 1 in p else (y == 0) if None not in p else y is pd.NA


@given(st.text(alphabet="a./\\\0~C:", max_size=12))
def test_safe_join_never_leaves(tmp_path_factory, rel):
    root = tmp_path_factory.getbasetemp()/"root"; root.mkdir(exist_ok=True)
    try: path = safe_join(root, rel)
    except UnsafePath: return
    assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def test_links_lead_only_where_they_may(tmp_path):
    root, store = tmp_path/"corpus", tmp_path/"store"
    for f in (root, store): f.mkdir()
    (store/"a.mp4").touch(); (root/"a.mp4").symlink_to(store/"a.mp4"); (root/"loop").symlink_to(root/"loop")
    df = as_manifest([dict(corpus="toy", path=p) for p in ("a.mp4", "loop")])
    assert check_files(df, root).status.tolist() == ["unsafe_path", "missing_file"]
    assert check_files(df, root, (store,)).status.tolist() == ["pending", "missing_file"]


# corpora -------------------------------------------------------------------------------------------------------------

HEADERS = {"original": "source,target1,target2,method,category,type,race,gender,path,", "filename": "source,target1,target2,method,category,type,race,gender,filename,path",
    "vid": "source,target1,target2,method,category,type,race,gender,vid,path,split", "short": "source,target1,target2,method,category,type,race,gender,path"}


def fakeavceleb(folder:Path, header="original", prefix="FakeAVCeleb"):
    "Every quirk of the list at once, with empty files."
    A, B, C, D = (f"{top}/African/men" for top in FAKEAVCELEB_CATEGORIES)
    table = [("id00076", "-", "-", "real", "A", "00109.mp4", f"{A}/id00076"), ("id00166", "-", "-", "real", "A", "00010.mp4", f"{A}/id00166"),
        ("id00076", "-", "-", "rtvc", "B", "00109.mp4", f"{B}/id00076"), ("id00076", "id00166", "-", "wav2lip", "C", "00109_id00166_wavtolip.mp4", f"{C}/id00076"),
        ("id00166", "id00076", "-", "fsgan", "C", "00010.mp4", f"{C}/id00166"), ("id00076", "id00166", "2", "faceswap-wav2lip", "D", "00109_2_id00166_wavtolip.mp4", f"{D}/id00076"),
        ("id00076", "id00166", "2", "wav2lip", "D", "00109_2_id00166_wavtolip.mp4", f"{D}/id00076"), ("id00166", "id00076", "-", "faceswap", "C", "00010_id00076.mp4", f"{C}/id00166")]
    for *_,name,place in table: (folder/place).mkdir(parents=True, exist_ok=True); (folder/place/name).touch()
    (folder/A/"id00076/._00109.mp4").touch()
    tail = ",train" if header == "vid" else ""
    lines = [f"{s},{t1},{t2},{m},{c},{place.split('/')[0]},African,men,{name},{prefix}/{place}{tail}" for s,t1,t2,m,c,name,place in table]
    (folder/"meta_data.csv").write_text("\n".join([HEADERS[header], *lines, ""]))
    return folder


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("prefix", ["FakeAVCeleb", "FakeAVCeleb_v1.2"])
def test_fakeavceleb_under_every_header(tmp_path, header, prefix):
    fakeavceleb(tmp_path/"FakeAVCeleb_v1.2", header, prefix)
    df = read_corpus("fav", tmp_path, "fakeavceleb")
    assert (df.status == "pending").all() and len(df) == 7 and df.id.is_unique and not (df.split != "").any()
    swap = df.set_index("path").loc["FakeVideo-FakeAudio/African/men/id00076/00109_2_id00166_wavtolip.mp4"]
    assert swap.method == "faceswap-wav2lip" and swap.identity_target == "id00166" and "2 times" in swap.reason
    assert any("1 repeated row" in n for n in df.attrs["notes"])
    assert any("`split`" in n for n in df.attrs["notes"]) == (header == "vid")


def test_fakeavceleb_folder_or_parent(tmp_path):
    folder = fakeavceleb(tmp_path/"FakeAVCeleb_v1.2")
    a, b = read_corpus("fav", folder, "fakeavceleb"), read_corpus("fav", tmp_path, "fakeavceleb")
    pd.testing.assert_frame_equal(a, b); assert a.attrs["folder"] == b.attrs["folder"] == str(folder)


def test_fakeavceleb_labels_and_names(tmp_path):
    df = read_corpus("fav", fakeavceleb(tmp_path), "fakeavceleb").set_index("path")
    by = df.groupby(["method", "category"])[LABELS].first()
    assert by.loc[("real", "A")].tolist() == [0, 0, 0, 0] and by.loc[("wav2lip", "C")].tolist() == [1, 1, 0, 0]
    assert by.loc[("rtvc", "B")].tolist()[:3] == [1, 0, 1] and by.loc[("rtvc", "B")].y_sync is pd.NA
    assert df.loc["FakeVideo-RealAudio/African/men/id00166/00010.mp4"].method == "fsgan"  # a fake with the name of a real clip
    assert sum(p.endswith("/00109.mp4") for p in df.index) == 2                            # one name in two categories


def test_methods_that_the_table_lacks_have_the_labels_of_their_category():
    assert [fakeavceleb_labels("new", c) for c in "ABCDX"] == [(0, 0, None), (0, 1, None), (1, 0, None), (1, 1, None), (None, None, None)]
    assert fakeavceleb_labels("dubbing", "A") == fakeavceleb_labels("timeshift", "B") == (0, 0, 1) and fakeavceleb_labels("lpc", "B") == (0, 1, None)


def test_fakeavceleb_hostile_rows_keep_their_row(tmp_path):
    folder = fakeavceleb(tmp_path/"corpus")
    A = "FakeAVCeleb/RealVideo-RealAudio/African/men/id00076"
    (tmp_path/"secret.mp4").touch(); (folder/"RealVideo-RealAudio/African/men/id00076/link.mp4").symlink_to(tmp_path/"secret.mp4")
    with open(folder/"meta_data.csv", "a") as f:
        for name,place in (("secret.mp4", "FakeAVCeleb/.."), ("secret.mp4", str(tmp_path)), ("secret.mp4", f"{A}/../../../../.."), ("link.mp4", A), ("gone.mp4", A), ("", ""), ("x"*300 + ".mp4", A)):
            f.write(f"id00076,-,-,real,A,RealVideo-RealAudio,African,men,{name},{place}\n")
        f.write(f"id00076,-,-,real,A,RealVideo-RealAudio,African,men,00109.mp4,{A.replace('RealVideo-RealAudio', 'FakeVideo-RealAudio')}\n")
        f.write(f"\nid00076,id2\n")
    df = read_corpus("fav", folder, "fakeavceleb")
    counts = df.status.value_counts().to_dict()
    assert counts == dict(pending=7, unsafe_path=5, missing_file=2, label_conflict=1), df[["path", "status", "reason"]].to_string()
    assert df[df.status == "label_conflict"].y.isna().all()


def test_files_that_no_row_names_are_said(tmp_path):
    folder = fakeavceleb(tmp_path)
    (folder/"FakeVideo-RealAudio/African/men/id00076/new.mp4").touch()
    df = read_corpus("fav", folder, "fakeavceleb")
    assert df[df.status == "not_listed"].path.tolist() == ["FakeVideo-RealAudio/African/men/id00076/new.mp4"]
    assert (make_splits(df, SplitParams(1., 0., 0., [], False), 0).split == "unused").sum() == 1


def test_errors_say_what_to_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpora.fav.root"): read_corpus("fav", tmp_path/"no", "fakeavceleb")
    with pytest.raises(FileNotFoundError, match=r"meta_data.csv.*corpora.fav.root"): read_corpus("fav", tmp_path, "fakeavceleb")
    with pytest.raises(ValueError, match="faceforensics, fakeavceleb"): read_corpus("fav", tmp_path, "fakeavcelebs")
    (tmp_path/"RealVideo-RealAudio").mkdir()
    with pytest.raises(FileNotFoundError, match="no meta_data.csv"): read_corpus("fav", tmp_path, "fakeavceleb")
    (tmp_path/"meta_data.csv").write_text("")
    with pytest.raises(ValueError, match="is empty"): read_corpus("fav", tmp_path, "fakeavceleb")
    (tmp_path/"meta_data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no columns"): read_corpus("fav", tmp_path, "fakeavceleb")
    for name in ("one", "two"): fakeavceleb(tmp_path/"both"/name)
    with pytest.raises(FileNotFoundError, match="several: one, two"): find_folder("fav", tmp_path/"both", "fakeavceleb")
    with pytest.raises(ParamsError, match="corpora.fav.links"): read_corpora({"fav": dict(layout="fakeavceleb", root="both/one")}, tmp_path)


def faceforensics(folder:Path, compressions=("c23",), splits=True):
    "Six originals in three pairs, two methods, actors."
    pairs = [("000", "003"), ("001", "870"), ("002", "006")]
    files = [f"original_sequences/youtube/{c}/videos/{n}.mp4" for c in compressions for p in pairs for n in p]
    files += [f"manipulated_sequences/{m}/{c}/videos/{a}_{b}.mp4" for m in ("Deepfakes", "NeuralTextures") for c in compressions for p in pairs for a,b in (p, p[::-1])]
    files += [f"original_sequences/actors/{c}/videos/01__walking.mp4" for c in compressions] + [f"manipulated_sequences/DeepFakeDetection/{c}/videos/01_02__walking__ABC.mp4" for c in compressions]
    for f in files: (folder/f).parent.mkdir(parents=True, exist_ok=True); (folder/f).touch()
    if splits:
        (folder/"splits").mkdir()
        for split,pair in zip(("train", "val", "test"), pairs): (folder/"splits"/f"{split}.json").write_text(json.dumps([pair]))
    return folder


@pytest.mark.parametrize("compressions, categories", [(("c23",), {"c23"}), (("c0", "c40"), {"raw", "c40"}), (("raw",), {"raw"})])
def test_faceforensics(tmp_path, compressions, categories):
    df = read_corpus("ff", faceforensics(tmp_path/"FaceForensics++", compressions).parent, "faceforensics")
    assert len(df) == 20*len(compressions) and set(df.category) == categories and df.id.is_unique and (df.status == "pending").all()
    assert df.y_audio.isna().all() and df.y_sync.isna().all() and (df.y == df.y_video).all()
    fake = df[df.path.str.contains("Deepfakes") & df.path.str.endswith("000_003.mp4")].iloc[0]
    assert (fake.identity_source, fake.identity_target, fake.method, fake.split) == ("000", "003", "Deepfakes", "train")
    assert set(df[df.path.str.contains("actors|DeepFakeDetection")].identity_source) == {"actor01"} and set(df.split) == {"train", "val", "test", ""}
    done = make_splits(df, SplitParams(.5, .25, .25, [], True), 0)
    assert leak_report(done)[["shared_people", "test_made_with_train", "train_made_with_test"]].sum(axis=None) == 0
    assert (done[df.split != ""].split == df[df.split != ""].split).all()


def test_faceforensics_without_official_split_keeps_pairs_together_if_strict(tmp_path):
    df = read_corpus("ff", faceforensics(tmp_path, splits=False), "faceforensics")
    assert any("split by identity" in n for n in df.attrs["notes"])
    done = make_splits(df[~df.path.str.contains("actors|DeepFake")], SplitParams(.4, .3, .3, [], True), 0)
    assert not (done.split == "unused").any() and leak_report(done).test_made_with_train.sum() == 0


def test_faceforensics_oddities(tmp_path):
    folder = faceforensics(tmp_path)
    (folder/"original_sequences/youtube/c23/masks").mkdir(); (folder/"original_sequences/youtube/c23/masks/000.mp4").touch()
    df = read_corpus("ff", folder, "faceforensics")
    assert (df.status == "not_listed").sum() == 1 and df[df.status == "not_listed"].y.isna().all()
    (folder/"splits/val.json").write_text('[["000", "005"]]')
    with pytest.raises(ValueError, match="000 is in split train too"): read_corpus("ff", folder, "faceforensics")
    (folder/"splits/val.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="val.json is not a list of pairs"): read_corpus("ff", folder, "faceforensics")


def test_corpora_together(tmp_path):
    fakeavceleb(tmp_path/"FakeAVCeleb_v1.2"); faceforensics(tmp_path/"FaceForensics++")
    df, folders = read_corpora({"fav": dict(layout="fakeavceleb", root=".", links=[]), "ff": CorpusParams("faceforensics", ".", [])}, tmp_path)
    assert df.groupby("corpus").size().to_dict() == dict(fav=7, ff=20) and all((folders[c]/p).is_file() for c,p in zip(df.corpus, df.path))


@pytest.fixture
def elsewhere(tmp_path):
    "A project with two corpora outside of `data`, listed as `prepare` lists them, one of them beside the project."
    base = tmp_path/"project"
    fakeavceleb(tmp_path/"away"/"FakeAVCeleb_v1.2"); faceforensics(base/"mine"/"FaceForensics++")
    sections = dict(fav=dict(layout="fakeavceleb", root=str(tmp_path/"away"), links=[]), ff=dict(layout="faceforensics", root="mine", links=[]))
    df, folders = read_corpora(sections, base)
    keep_listings(base/"out", listings(df, folders, sections, base))
    return base, sections, folders


def test_a_corpus_that_stays_has_not_changed(elsewhere):
    base, sections, folders = elsewhere
    (folders["fav"]/"README.txt").write_text("no clip"); (folders["ff"]/"splits"/"notes.txt").touch()
    assert set(kept_listings(base/"out")) == {"fav", "ff"} and changed_corpora(base/"out", sections, base) == []


@pytest.mark.parametrize("corpus, change, words", [
    ("ff", lambda f: (f/"original_sequences/youtube/c23/videos/007.mp4").touch(), "then 20 clips, 0 bytes, now 21 clips"),
    ("ff", lambda f: (f/"original_sequences/youtube/c23/videos/000.mp4").write_text("more"), "now 20 clips, 4 bytes"),
    ("ff", lambda f: os.utime(f/"original_sequences/youtube/c23/videos/000.mp4", (1, 1)), "the time of a file"),
    ("ff", lambda f: (f/"splits/val.json").write_text("[]"), "a label"),
    ("fav", lambda f: (f/"meta_data.csv").write_text((f/"meta_data.csv").read_text().replace("rtvc", "rtvv")), "a label"),
    ("fav", lambda f: (f/"RealVideo-RealAudio/African/men/id00076/00109.mp4").unlink(), "now 6 clips"),
    ("fav", lambda f: f.rename(f.parent.with_name("gone")), "corpora.fav.root"),
])
def test_a_changed_corpus_is_noticed(elsewhere, corpus, change, words):
    base, sections, folders = elsewhere
    change(folders[corpus])
    (said,) = changed_corpora(base/"out", sections, base)
    assert words in said and f"corpus `{corpus}`" in said, said


def test_what_dvc_notices_by_itself_has_no_listing(elsewhere):
    base, sections, folders = elsewhere
    (base/"mine").rename(base/"data")
    assert changed_corpora(base/"out", {**sections, "ff": dict(sections["ff"], root="data")}, base) == [], "another root is a change of params.yaml"
    keep_listings(base/"out", {})
    assert not (base/"out"/"corpora.json").exists() and changed_corpora(base/"out", sections, base) == []
    assert is_watched("data/x", base) and is_watched(base/"data", base) and not is_watched("/data", base) and not is_watched("data/../mine", base) and not is_watched("database", base)


# splits --------------------------------------------------------------------------------------------------------------

people = st.integers(0, 12).map(lambda i: f"id{i}")
clip_rows = st.lists(st.tuples(people, st.one_of(st.just(""), people), st.sampled_from(["real", "swap", "voice"]), st.sampled_from(["a", "b"])), min_size=1, max_size=60)
shares = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)).filter(any).map(lambda w: [x/sum(w) for x in w])


@settings(max_examples=80, deadline=None)
@given(clip_rows, shares, st.integers(0, 3), st.booleans(), st.booleans())
def test_nobody_is_in_two_splits(table, share, seed, strict, hold):
    df = as_manifest([dict(corpus=c, path=f"{i}.mp4", identity_source=s, identity_target=t, method=m) for i,(s,t,m,c) in enumerate(table)])
    held = ["swap"] if hold and (df.method == "swap").any() else []
    done = make_splits(df, SplitParams(*share, held, strict), seed)
    for _,rows in done.groupby("corpus"):
        split_of = rows[rows.split != "unused"].groupby("identity_source").split.nunique()
        assert (split_of <= 1).all()
        if strict:
            test, train = rows[rows.split == "test"], rows[rows.split == "train"]
            assert not set(test.identity_target) - {""} & set(train.identity_source) and not (set(train.identity_target) - {""}) & set(test.identity_source)
    assert not set(done[done.split.isin(["train", "val"])].method) & set(held)
    assert set(done.split) <= {"train", "val", "test", "unused"} and len(done) == len(df)
    if not strict and not held: assert not (done.split == "unused").any()
    shuffled = make_splits(df.sample(frac=1, random_state=seed), SplitParams(*share, held, strict), seed)
    assert split_hash(shuffled) == split_hash(done)


def test_a_method_that_no_corpus_has():
    "A near one is guessed, a far one is not, all that there are stand behind, and everything wrong is said at once."
    p = lambda *names: SplitParams(.6, .2, .2, list(names), False)
    with pytest.raises(ParamsError) as e: check_params(p("wav2lp", "lpc", "fsgan"), ["fsgan", "rtvc", "wav2lip"])
    said = str(e.value)
    assert "`wav2lp`, did you mean `wav2lip`?" in said and "no corpus has a method `lpc`;" in said and "the corpora have fsgan, rtvc, wav2lip" in said and "method `fsgan`" not in said
    with pytest.raises(ParamsError, match="have no fakes"): check_params(p("lpc"), [])
    check_params(p("fsgan", "rtvc"), ["fsgan", "rtvc", "wav2lip"]); check_params(p(), [])


def test_splits_of_one_corpus_do_not_depend_on_another():
    one = as_manifest([dict(corpus="a", path=f"{i}.mp4", identity_source=f"id{i}", method="real") for i in range(30)])
    other = as_manifest([dict(corpus="b", path=f"{i}.mp4", identity_source=f"id{i}", method="real") for i in range(7)])
    p = SplitParams(.6, .2, .2, [], False)
    assert make_splits(pd.concat([other, one], ignore_index=True), p, 3).split[7:].tolist() == make_splits(one, p, 3).split.tolist()


def test_every_split_has_somebody_if_there_are_enough():
    for n in range(3, 9):
        df = as_manifest([dict(corpus="a", path=f"{i}.mp4", identity_source=f"id{i}", method="real") for i in range(n)])
        assert set(make_splits(df, SplitParams(.9, .05, .05, [], False), 0).split) == {"train", "val", "test"}


def test_broken_official_split_is_refused():
    df = as_manifest([dict(corpus="a", path=f"{s}.mp4", identity_source="ann", method="real", split=s) for s in ("train", "test")])
    with pytest.raises(ValueError, match="more than one split"): make_splits(df, SplitParams(.5, .2, .3, [], False), 0)


def test_clips_of_nobody_are_their_own_people():
    df = as_manifest([dict(corpus="a", path=f"{i}.mp4", method="real") for i in range(20)])
    assert leak_report(make_splits(df, SplitParams(.5, .2, .3, [], True), 0))[["people_train", "people_val", "people_test"]].iloc[0].tolist() == [10, 4, 6]


# clips ---------------------------------------------------------------------------------------------------------------

BATCHES = BatchParams(balance="method", real=.5, epoch_clips=0, flip=.5, brightness=.1, contrast=.2, blur=.3, noise=.02, gain_db=6., tilt=.3, audio_noise=.05, drop_video=.2, drop_audio=.2, prefetch=2, sharp=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    from safetensors.numpy import save_file
    folder, rng, table = tmp_path_factory.mktemp("features"), np.random.default_rng(0), []
    for corpus,n in (("a", 41), ("b", 12)):
        (folder/corpus).mkdir()
        for s in range(2):
            ids = [f"{corpus}/{s}_{i}.mp4" for i in range(n)]
            save_file(dict(face=rng.integers(0, 256, (n,2,8,8,3), np.uint8), mouth=rng.integers(0, 256, (n,5,6,6), np.uint8), audio=rng.integers(-9000, 9000, (n,5*SAMPLES_PER_FRAME), np.int16),
                has_video=np.ones(n, np.uint8), has_audio=np.full(n, corpus == "a", np.uint8)), folder/corpus/f"shard-{s:05}.safetensors")
            (folder/corpus/f"shard-{s:05}.json").write_text(json.dumps(dict(windows=[dict(id=i, start_frame=0) for i in ids])))
            for i,id in enumerate(ids):
                fake, sound = i % 10 > 0, corpus == "a"
                table.append(dict(id=id, corpus=corpus, path=id[2:], method="real" if not fake else ("voice" if i % 10 == 1 and sound else "swap"), status="ok", split="train",
                    y=int(fake), y_video=int(fake and not (i % 10 == 1 and sound)), y_audio=int(i % 10 == 1) if sound else None, y_sync=0 if sound else None))
    return Clips(folder, as_manifest(table), split="train")


def same(a:Batch, b:Batch): return all(torch.equal(getattr(a, f.name).nan_to_num(-7), getattr(b, f.name).nan_to_num(-7)) for f in fields(Batch))


def test_batches_depend_on_seed_epoch_and_step_alone(clips):
    whole, again = (list(train_batches(clips, 8, 0, 3, BATCHES)) for _ in range(2))
    assert len(whole) == 13 and all(same(a, b) for a,b in zip(whole, again, strict=True))
    assert all(same(a, b) for a,b in zip(whole[9:], train_batches(clips, 8, 0, 3, replace(BATCHES, prefetch=0), start=9), strict=True))
    for other in (train_batches(clips, 8, 1, 3, BATCHES), train_batches(clips, 8, 0, 4, BATCHES)): assert not same(whole[0], next(iter(other)))
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try: assert same(whole[0], next(iter(train_batches(clips, 8, 0, 3, BATCHES))))
    finally: torch.set_num_threads(threads)


def test_stored_clips_come_back_as_they_are(clips):
    for b in eval_batches(clips, 7):
        for i,row in enumerate(b.idx.tolist()):
            shard, at = clips.at[row]
            assert np.array_equal(clips.shards[shard]["face"][at], b.face[i].numpy()) and np.allclose(clips.shards[shard]["audio"][at]/32767, b.audio[i].numpy())
            assert (clips.rows.y_audio[row] is pd.NA) == bool(b.y_audio[i].isnan())
    assert torch.cat([b.idx for b in eval_batches(clips, 7)]).tolist() == list(range(len(clips)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["none", "label", "method"]), st.integers(1, 300), st.integers(0, 5), st.floats(0, 1))
def test_an_epoch_is_balanced_exactly(clips, balance, n, seed, real):
    p = replace(BATCHES, balance=balance, real=real)
    order = draw_epoch(clips.rows, n, p, stream(seed))
    assert len(order) == n
    times = np.bincount(order, minlength=len(clips))
    r = clips.rows.assign(times=times)
    if balance == "none": assert times.max() - times.min() <= 1
    else:
        for corpus,part in r.groupby("corpus"):
            want = n*len(part)/len(r)
            assert abs(part.times.sum() - want) <= 4 and abs(part[part.y == 0].times.sum() - want*real) <= 2
    keys = ["corpus", "method"] if balance == "method" else ["corpus", "y"]
    if balance != "none": assert (r.groupby(keys).times.agg(lambda t: t.max() - t.min()) <= 1).all()


def test_hidden_modalities_leave_nothing_behind(clips):
    b = next(iter(train_batches(clips, 100, 0, 0, replace(BATCHES, drop_video=.4, drop_audio=.4))))
    assert (b.has_video | b.has_audio).all() and 0 < (~b.has_video).sum() < 60 and (~b.has_audio).any()
    assert b.face[~b.has_video].sum() == 0 and b.mouth[~b.has_video].sum() == 0 and b.audio[~b.has_audio].abs().sum() == 0
    assert b.y_video[~b.has_video].isnan().all() and b.y_audio[~b.has_audio].isnan().all() and b.y_sync[~(b.has_video & b.has_audio)].isnan().all()
    stored = clips.batch(b.idx)
    both = b.has_video & b.has_audio
    assert torch.equal(b.y[both], stored.y[both])
    assert torch.equal(b.y[~b.has_video], stored.y_audio[~b.has_video]) and torch.equal(b.y[~b.has_audio], stored.y_video[~b.has_audio])


def test_nothing_is_varied_at_zero_strength(clips):
    still = BatchParams("none", .5, 0, 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0, 0)
    b = clips.batch(range(20))
    assert same(augment(clips.batch(range(20)), still, stream(0)), b)


def test_variation_does_not_touch_the_stored(clips):
    before = clips.batch(range(30)); augment(clips.batch(range(30)), replace(BATCHES, flip=1.), stream(1))
    assert same(before, clips.batch(range(30)))


def test_variation_keeps_ranges(clips):
    b = augment(clips.batch(range(50)), replace(BATCHES, brightness=1., contrast=1., noise=.5, gain_db=40., audio_noise=3.), stream(2))
    assert b.face.dtype == b.mouth.dtype == torch.uint8 and b.audio.dtype == torch.float32 and b.audio.abs().max() <= 1 and b.audio.isfinite().all()


def test_ahead_passes_errors_and_stops():
    def broken(): yield 1; raise KeyError("late")
    it = ahead(broken(), 2); assert next(it) == 1
    with pytest.raises(KeyError, match="late"): next(it)
    made = []
    def endless():
        while True: made.append(len(made)); yield made[-1]
    it = ahead(endless(), 2); next(it); it.close(); n = len(made); time.sleep(.3)
    assert len(made) == n <= 5
    assert list(ahead(iter([]), 2)) == [] and list(ahead(range(3), 0)) == [0, 1, 2]


def test_too_few_clips_for_a_batch(clips):
    with pytest.raises(ValueError, match="do not fill a batch"): train_batches(clips, 1000, 0, 0, BATCHES)
    none = Clips(".", clips.rows.iloc[:0][list(COLUMNS)])
    assert len(none) == 0 and list(eval_batches(none, 4)) == []
    with pytest.raises(ValueError, match="do not fill"): train_batches(none, 4, 0, 0, replace(BATCHES, epoch_clips=100))


def test_batch_moves(clips):
    b = clips.batch([1, 2]).to("cpu")
    assert len(b) == 2 and same(b, clips.batch([1, 2]))


# shards --------------------------------------------------------------------------------------------------------------

PREPARE = PrepareParams(detector="none", detect_every=5, min_face_px=16, face_px=16, mouth_px=8, sharp=2, frames=10, trim_silence=True, shard_clips=3, windows=1, workers=1, max_s=5., file_limit_s=60., cluster="local")


def talking(path:Path, seed=0, n=14, sound=True, silence=0):
    "A small clip of noise that moves, with a tone after some samples of digital silence."
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (48, 48, 3), np.uint8)
    samples = (.3*np.sin(np.arange(n*SAMPLES_PER_FRAME)*rng.uniform(.05, .3))).astype(np.float32); samples[:silence] = 0
    return write_clip(path, np.stack([np.roll(base, t, 1) for t in range(n)]), samples if sound else None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Twelve clips, of which four cannot be used."
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(8): talking(folder/f"{i:02}.mp4", i, sound=i != 5, silence=640*(i % 3))
    talking(folder/"08.mp4", 8, n=6); (folder/"09.mp4").write_text("a letter"); (folder/"10.mp4").touch()
    (folder/"11.mp4").write_bytes((folder/"00.mp4").read_bytes()[:900])
    df = as_manifest([dict(corpus="toy", path=f"{i:02}.mp4", identity_source=f"id{i}", method="real", y=0) for i in range(12)] + [dict(corpus="toy", path="gone.mp4", status="missing_file")])
    return df, {"toy": folder}


def contents(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    return prepare(*corpus, out, PREPARE, progress=False), contents(out)


def test_bad_files_become_rows(undisturbed):
    df, _ = undisturbed
    assert (df.status[:8] == "ok").all() and df.status[8] == "too_short" and df.status[12] == "missing_file"
    assert (df.status[9:12] != "ok").all() and (df.reason[8:12] != "").all()


def test_what_is_stored(corpus, undisturbed, tmp_path):
    prepare(*corpus, tmp_path, PREPARE, progress=False)
    clips = Clips(tmp_path, read_manifest(tmp_path/"manifest.csv"))
    b = clips.batch(range(8))
    assert b.face.shape == (8,2,16,16,3) and b.mouth.shape == (8,10,8,8) and b.audio.shape == (8,10*SAMPLES_PER_FRAME)
    assert b.has_audio.tolist() == [i != 5 for i in range(8)] and b.has_video.all() and b.audio[5].abs().sum() == 0
    assert clips.rows.start_frame.between(1, 4).all() and clips.rows.start_frame[2] >= 2  # 1280 samples of silence are two frames
    assert clips.rows.id.tolist() == read_manifest(tmp_path/"manifest.csv").id[:8].tolist()


def test_bytes_do_not_depend_on_workers(corpus, undisturbed, tmp_path):
    prepare(*corpus, tmp_path, replace(PREPARE, workers=2), progress=False)
    assert contents(tmp_path) == undisturbed[1]


def test_finished_shards_are_kept_and_others_made_again(corpus, undisturbed, tmp_path, monkeypatch):
    df, folders = corpus
    prepare(df, folders, tmp_path, PREPARE, progress=False)
    read, count = shards_room.cut_clip, []
    monkeypatch.setattr(shards_room, "cut_clip", lambda *a: count.append(a[0]) or read(*a))
    prepare(df, folders, tmp_path, PREPARE, progress=False); assert count == []
    (tmp_path/"toy/shard-00001.safetensors").write_bytes(b"cut"); (tmp_path/"toy/.shard-00002.99.part.safetensors").touch(); (tmp_path/"toy/shard-00077.json").touch()
    prepare(df, folders, tmp_path, PREPARE, progress=False)
    assert len(count) == 3 and contents(tmp_path) == undisturbed[1]
    count.clear(); prepare(df, folders, tmp_path, replace(PREPARE, face_px=24), progress=False); assert len(count) == 12
    count.clear(); prepare(df, folders, tmp_path, replace(PREPARE, face_px=24, shard_clips=4), progress=False); assert len(count) == 12


def test_a_changed_file_is_read_again(tmp_path):
    for i in range(2): talking(tmp_path/f"c/{i}.mp4", i)
    df = as_manifest([dict(corpus="toy", path=f"{i}.mp4") for i in range(2)])
    prepare(df, {"toy": tmp_path/"c"}, tmp_path/"out", replace(PREPARE, shard_clips=1), progress=False)
    before = contents(tmp_path/"out")
    os.utime(tmp_path/"c/0.mp4", (1, 1)); talking(tmp_path/"c/1.mp4", 7)
    prepare(df, {"toy": tmp_path/"c"}, tmp_path/"out", replace(PREPARE, shard_clips=1), progress=False)
    after = contents(tmp_path/"out")
    assert {k for k in after if after[k] != before[k]} == {"toy/shard-00001.json", "toy/shard-00001.safetensors"}


RUN = """
import sys, pandas as pd
from dataclasses import replace
from cad_nb.data.manifest import read_manifest
from cad_nb.data.shards import PrepareParams, prepare
if __name__ == "__main__":
    manifest, folder, out, workers, params = sys.argv[1:]
    prepare(read_manifest(manifest), {"toy": folder}, out, replace(eval(params), workers=int(workers)), progress=False)
"""


def children(pid):
    "All processes below one."
    parents = {}
    for p in Path("/proc").glob("[0-9]*"):
        try: parents[int(p.name)] = int((p/"stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError): pass
    below = {pid}
    while more := {c for c,p in parents.items() if p in below} - below: below |= more
    return below - {pid}


def alive(pid):
    try: return (Path("/proc")/str(pid)/"stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError: return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_killed_run_goes_on_and_leaves_no_workers(corpus, undisturbed, tmp_path):
    df, folders = corpus
    write_manifest(tmp_path/"m.csv", df); (tmp_path/"run.py").write_text(RUN)
    command = [sys.executable, tmp_path/"run.py", tmp_path/"m.csv", folders["toy"], tmp_path/"out", "2", repr(PREPARE)]
    run = subprocess.Popen(command, env=ONE_THREAD)
    deadline = time.time() + 120
    while not list((tmp_path/"out").glob("toy/*.json")) and run.poll() is None and time.time() < deadline: time.sleep(.002)
    workers = children(run.pid)
    run.kill(); run.wait()
    left = contents(tmp_path/"out")
    assert all(undisturbed[1][k] == v for k,v in left.items() if ".part" not in k and k.endswith(".safetensors")), "a shard is whole or absent"
    deadline = time.time() + 20
    while any(map(alive, workers)) and time.time() < deadline: time.sleep(.05)
    assert workers and not any(map(alive, workers))
    subprocess.run(command, env=ONE_THREAD, check=True)
    assert contents(tmp_path/"out") == undisturbed[1]


def test_full_disk_is_explained_and_loses_nothing(corpus, undisturbed, tmp_path, monkeypatch):
    write, calls = shards_room.write_whole, []
    def fails(part): part.write_bytes(b"half"); raise OSError(errno.ENOSPC, "No space left on device")
    def full(path, fill): calls.append(path); return write(path, fill if len(calls) < 5 else fails)
    monkeypatch.setattr(shards_room, "write_whole", full)
    with pytest.raises(DiskFull, match=r"6 clips left need up to 0\.\d+ MB.*run it again"): prepare(*corpus, tmp_path, PREPARE, progress=False)
    assert sorted(contents(tmp_path)) == [f"toy/shard-0000{i}.{end}" for i in (0, 1) for end in ("json", "safetensors")]
    monkeypatch.setattr(shards_room, "write_whole", write)
    prepare(*corpus, tmp_path, PREPARE, progress=False)
    assert contents(tmp_path) == undisturbed[1]


def test_full_tmpfs(corpus, undisturbed, tmp_path):
    (tmp_path/"out").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", tmp_path/"out"], capture_output=True).returncode: pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(DiskFull): prepare(*corpus, tmp_path/"out", PREPARE, progress=False)
        kept = contents(tmp_path/"out")
        assert kept and all(undisturbed[1][k] == v for k,v in kept.items())
        subprocess.run(["mount", "-o", "remount,size=8m", tmp_path/"out"], check=True)
        prepare(*corpus, tmp_path/"out", PREPARE, progress=False)
        assert contents(tmp_path/"out") == undisturbed[1]
    finally: subprocess.run(["umount", tmp_path/"out"], check=True)


def beset(path, *_):
    "In place of reading: a decoder that takes its process along, one that never returns, and one whose process the kernel kills once."
    name = Path(path).name
    if "bad" in name: os.kill(os.getpid(), signal.SIGKILL)
    if "stuck" in name: time.sleep(600)
    if "unlucky" in name and not Path(path).exists(): Path(path).touch(); os.kill(os.getpid(), signal.SIGKILL)
    return Cut("ok", name)


@pytest.mark.parametrize("n", [1, 2])
def test_a_file_that_kills_or_blocks_its_process_costs_its_own_row(monkeypatch, tmp_path, n):
    monkeypatch.setattr(shards_room, "cut_clip", beset)
    names = ["stuck.mp4", *"012345", "bad.mp4", *"678", "unlucky.mp4", "stuck2.mp4", "bad2.mp4"]
    cuts = list(shards_room.read_in_parallel([tmp_path/name for name in names], replace(PREPARE, file_limit_s=.5), n))
    assert [c.status for c in cuts] == ["decode_error" if "bad" in name or "stuck" in name else "ok" for name in names]
    assert all("died, twice" in c.reason if "bad" in name else "longer than 0.5 s" in c.reason if "stuck" in name else c.reason == name for c,name in zip(cuts, names))


def test_reader_errors_are_a_status(corpus, tmp_path, monkeypatch):
    def broken(path, *_): raise (MemoryError() if "00" in path.name else RuntimeError("what"))
    monkeypatch.setattr(shards_room, "read_clip", broken)
    df = prepare(*corpus, tmp_path, PREPARE, progress=False)
    assert (df.status[:12] == "decode_error").all() and "MemoryError" in df.reason[0] and "what" in df.reason[1]
    assert len(Clips(tmp_path, df)) == 0


def test_a_file_that_went_after_it_was_listed(corpus, tmp_path):
    df = prepare(as_manifest([dict(corpus="toy", path="none.mp4")]), corpus[1], tmp_path, PREPARE, progress=False)
    assert df.status.tolist() == ["missing_file"]


def test_no_clips_at_all(tmp_path):
    df = prepare(as_manifest([]), {}, tmp_path, PREPARE, progress=False)
    assert len(df) == 0 and len(Clips(tmp_path, df)) == 0


@pytest.mark.parametrize("change, key", [(dict(sharp=11), "sharp"), (dict(frames=0), "frames"), (dict(workers=-1), "workers"), (dict(max_s=.1), "max_s"), (dict(file_limit_s=0.), "file_limit_s"), (dict(cluster="head:10001"), "cluster")])
def test_params_that_make_no_window(corpus, tmp_path, change, key):
    with pytest.raises(ParamsError, match=f"prepare.{key}"): prepare(*corpus, tmp_path, replace(PREPARE, **change))


@given(st.integers(0, 200), st.integers(0, 60), st.integers(1, 5), st.booleans())
def test_windows_lie_inside_the_clip(n_frames, silence, windows, trim):
    samples = np.ones(n_frames*SAMPLES_PER_FRAME, np.float32); samples[:silence*100] = 0
    p = replace(PREPARE, windows=windows, trim_silence=trim)
    starts = window_starts(n_frames, samples, p)
    assert bool(starts) == (n_frames >= p.frames) and len(starts) <= windows and starts == sorted(set(starts))
    for s in starts: assert 0 <= s <= n_frames - p.frames
    if trim and starts and n_frames - p.frames >= max(1, -(-silence*100//SAMPLES_PER_FRAME)) and silence*100 < len(samples): assert starts[0]*SAMPLES_PER_FRAME >= first_sound(samples) and starts[0] >= 1
