"""The stage runner and the command line against typos, signals, dying kernels and folders that are not the installed project."""
import io, json, os, shutil, signal, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path
import nbformat, pytest, yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner
from cad_nb.core import ParamsError, fits, misfit, read_params
from cad_nb.data.corpora import keep_listings, listings, read_corpora
from cad_nb.run import cli
from cad_nb.run.cli import app
from cad_nb.run.stages import DVC_FILES, LiveLog, StageError, StageFailed, check_commit, check_params, current_dvc, declared, dvc_stages, module_deps, run_stage, stage_notebooks, stage_params, with_lists
from conftest import ROOT, git

SEED = dict(seed=int)
ENV = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CAD_RESTARTED")}


def write_notebook(path, *cells, parameters="seed = None"):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell("# A stage\n> Does it run?"), *([new_code_cell(parameters, metadata=dict(tags=["parameters"]))] if parameters is not None else []), *map(new_code_cell, cells)]
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="Python 3"))), path)
    return path


@pytest.fixture
def project(tmp_path):
    "Makes a project of one stage, `toy`, from the code of its cells."
    def make(*cells, params="seed: 3\n", **kwargs):
        (tmp_path/"params.yaml").write_text(params)
        write_notebook(tmp_path/"nbs"/"pipelines"/"1_toy.ipynb", *cells, **kwargs)
        return tmp_path
    return make


def cad(folder, *words, **kwargs):
    return subprocess.Popen([Path(sys.executable).parent/"cad", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV, **kwargs)


# before a kernel starts ----------------------------------------------------------------------------------------------

@dataclass
class Inner:
    depth:int

@dataclass
class Outer:
    inner:Inner
    names:list[str]

    def __post_init__(self):
        if not self.names: raise ValueError("params.yaml: `outer.names` must name somebody")


@pytest.mark.parametrize("params, message", [
    (dict(seed="3"), "`seed` must be a whole number, got '3': write 3"),
    (dict(seed=True), "`seed` must be a whole number, got True$"),
    (dict(sede=3), "section `sede` is unknown; did you mean `seed`"),
    (dict(outer=dict(inner=dict(dept=1), names=["a"])), "`outer.inner.dept` is unknown; did you mean `outer.inner.depth`"),
    (dict(outer=dict(names=["a"])), "`outer.inner` is missing: a map of keys"),
    (dict(outer=dict(inner=dict(), names=["a"])), "`outer.inner.depth` is missing: a whole number"),
    (dict(outer=dict(inner=dict(depth=1), names="a")), r'`outer.names` must be a list of texts, got .a.: write \["a"\]'),
    (dict(outer=dict(inner=dict(depth=1), names=[])), "must name somebody"),
    (dict(outer=None), "`outer` must be a map"),
    (dict(many=dict(a=dict(depth=1), b=dict(depth="deep"))), "`many.b.depth` must be a whole number, got 'deep'$"),
    (dict(many=[1]), "`many` must be a map of names"),
])
def test_wrong_params_are_named(params, message):
    with pytest.raises(ParamsError, match=message): check_params(params, dict(seed=int, outer=Outer, many={"*": Inner}))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ParamsError) as e: check_params(dict(seed="x", outer=dict(inner=dict(depth="y"), names=["a"]), sede=1), dict(seed=int, outer=Outer))
    assert all(word in str(e.value) for word in ("`seed`", "`outer.inner.depth`", "`sede`")) and str(e.value).count("params.yaml") == 1


@pytest.mark.parametrize("value, kind, said", [
    ("0.1", float, "must be a number, got '0.1': write 0.1"), ("yes", bool, "must be true or false, got 'yes'"), (1, bool, "must be true or false, got 1: write true"), (3.0, int, "got 3.0: write 3"),
    (3, str, 'must be text, got 3: write "3"'), (True, str, "must be text, got True"), ([0.5], float, "must be a number, got [0.5]: write 0.5"), (None, list[float], "must be a list of numbers, got None"),
    ([1, 2], dict[str, list[float]], "must be a map from text to a list of numbers, got [1, 2]"), ("x", int | None, "must be a whole number or null, got 'x'"), (float("nan"), int, "must be a whole number, got nan"),
])
def test_types_are_told_in_words(value, kind, said):
    assert not fits(value, kind) and misfit("a.b", value, kind).startswith("`a.b` must be") and misfit("a.b", value, kind).endswith(said)


def test_variants_that_do_not_exist(project):
    "Named before anything starts, whichever stage is at hand."
    params = read_params(ROOT/"params.yaml")
    check_params(params)
    params["train"]["variants"], params["real_only"]["variants"], params["attribute"]["variant"] = ["cad", "nave"], ["forest"], "cads"
    with pytest.raises(ParamsError) as e: check_params(params)
    assert all(words in str(e.value) for words in ("`train.variants`: there is no variant `nave`, did you mean `naive`?", "`real_only.variants`: there is no variant `forest`; there are cad, naive", "`attribute.variant`: there is no variant `cads`, did you mean `cad`?"))
    root = project("open('ran', 'w')", params=yaml.safe_dump(params))
    with pytest.raises(ParamsError, match="no variant `forest`"): run_stage("toy", root, log=LiveLog(io.StringIO()))
    assert not list(root.rglob("ran"))


@pytest.mark.parametrize("parameters, message", [(None, "it has 0"), ("seed = 1 + int('2')", "is not `name = plain value`"), ("import os", "is not"), ("a, b = 1, 2", "is not"), ("a = b = 1", "is not")])
def test_parameter_cells_that_are_not_one(project, parameters, message):
    root = project(parameters=parameters)
    with pytest.raises(StageError, match=message): stage_params("toy", root, SEED)


def test_two_parameter_cells(project):
    path = stage_notebooks(project())["toy"]
    nb = nbformat.read(path, 4); nb.cells.append(new_code_cell("other = 1", metadata=dict(tags=["parameters"]))); nbformat.write(nb, path)
    with pytest.raises(StageError, match="it has 2"): declared(path)


def test_what_the_notebook_declares_must_exist(project):
    with pytest.raises(StageError, match="declares `sed`, which no room uses; did you mean `seed`"): stage_params("toy", project(parameters="sed = 1"), SEED)
    with pytest.raises(ParamsError, match="section `seed` is missing"): stage_params("toy", project(params="other: 1\n"), dict(seed=int, other=int))


def test_dvc_must_list_the_same_params(project):
    root = project()
    (root/"dvc.yaml").write_text("stages:\n  toy:\n    cmd: cad stage toy\n    deps:\n    - nbs/pipelines/1_toy.ipynb\n    params:\n    - device\n")
    with pytest.raises(StageError, match="cad deps --write"): stage_params("toy", root, SEED)
    (root/"dvc.yaml").write_text(current_dvc(root))
    assert stage_params("toy", root, SEED) == dict(seed=3)


def test_a_study_stands_in_a_file_of_its_own(project):
    root = project()
    write_notebook(root/"nbs"/"studies"/"2_look.ipynb", "print(seed)")
    for file, name, more in (("dvc.yaml", "toy", "    deps:\n    - nbs/pipelines/1_toy.ipynb\n"), ("nbs/studies/dvc.yaml", "look", "    wdir: ../..\n    deps:\n    - nbs/studies/2_look.ipynb\n")):
        (root/file).write_text(f"stages:\n  {name}:\n    cmd: cad stage {name}\n{more}    params:\n    - device\n")
    with pytest.raises(StageError, match="nbs/studies/dvc.yaml lists the params"): stage_params("look", root, SEED)
    done = cad(root, "deps", "--write"); said, _ = done.communicate()
    assert done.returncode == 0 and "+    - seed" in said, said
    assert stage_params("look", root, SEED) == stage_params("toy", root, SEED) == dict(seed=3)
    assert list(dvc_stages(root)) == ["toy"] and list(dvc_stages(root, DVC_FILES[1])) == ["look"] and dvc_stages(root, DVC_FILES[1])["look"]["wdir"] == "../.."


def test_nothing_starts_when_a_key_is_misspelt(project):
    root = project("open('ran', 'w')", params="seed: 3\ndevise: cpu\n")
    done = cad(root, "stage", "toy"); said, _ = done.communicate()
    assert done.returncode == 2 and "section `devise` is unknown; did you mean `device`?" in said and "Traceback" not in said
    assert not (root/"out").exists() and not list(root.rglob("ran"))


def test_a_stage_that_logs_needs_a_commit(project, monkeypatch):
    root = project("from cad_nb.log import live\nopen('ran', 'w')")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(root.parent))
    (root/"cad_nb").mkdir(); (root/"cad_nb"/"log.py").write_text("def live(): import dvclive\n")
    write_notebook(root/"nbs"/"pipelines"/"2_other.ipynb", "print(seed)")
    check = lambda name: check_commit(stage_notebooks(root)[name], root)
    check("toy")   # no repository: dvclive does not ask
    git(root, "init", "-q")
    with pytest.raises(StageError, match="has no commit yet.*git add -A && git commit"): run_stage("toy", root, SEED)
    assert not list(root.rglob("ran"))
    check("other")
    git(root, "commit", "-q", "--allow-empty", "-m", "begin"); check("toy")


def test_training_is_a_stage_that_logs(tmp_path):
    "The real one, in a repository that has just been made: one line, and nothing has started."
    monkey = dict(ENV, GIT_CEILING_DIRECTORIES=str(tmp_path.parent), CAD_RESTARTED="1")
    for name in ("cad_nb", "nbs/pipelines"): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"): shutil.copy(ROOT/name, tmp_path)
    git(tmp_path, "init", "-q")
    done = subprocess.run([sys.executable, "-m", "cad_nb.run.cli", "stage", "train"], cwd=tmp_path, env=monkey, capture_output=True, text=True)
    assert done.returncode == 2 and "has no commit yet" in done.stderr and "Traceback" not in done.stderr and not (tmp_path/"out").exists()


def test_outside_of_a_project(tmp_path):
    done = cad(tmp_path, "stage", "toy"); said, _ = done.communicate()
    assert done.returncode == 2 and "no params.yaml" in said and "Traceback" not in said


# running -------------------------------------------------------------------------------------------------------------

def test_a_stage_gets_its_params_and_leaves_a_report(project):
    root = project("assert seed == 3\nprint('seed', seed)", "import pandas as pd; pd.DataFrame(dict(a=[1]))", "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.gcf()")
    log = LiveLog(io.StringIO())
    report = run_stage("toy", root, SEED, log)
    page = report.with_suffix(".html").read_text()
    assert report == root/"out"/"reports"/"1_toy.ipynb" and not list((root/"out"/"partial").iterdir())
    assert '<img' in page and "data:image/png" in page and 'src="http' not in page
    assert "# A stage\nseed 3\n   a\n0  1\n" in log.out.getvalue() and "Figure" not in log.out.getvalue()
    assert nbformat.read(stage_notebooks(root)["toy"], 4).cells[-1].outputs == [], "the committed notebook stays as it was"


def test_a_failing_cell_is_shown(project):
    root = project("print('before')", "answer = 6 * 7\nraise KeyError('no such clip')")
    (root/"out"/"reports").mkdir(parents=True); (root/"out"/"reports"/"1_toy.ipynb").write_text("of an earlier run")
    done = cad(root, "stage", "toy"); said, _ = done.communicate()
    assert done.returncode == 1
    for words in ("before", "nbs/pipelines/1_toy.ipynb stopped in this cell", "answer = 6 * 7", "KeyError: 'no such clip'", "out/partial/1_toy.ipynb"): assert words in said
    assert "papermill" not in said and (root/"out"/"partial"/"1_toy.ipynb").is_file() and (root/"out"/"reports"/"1_toy.ipynb").read_text() == "of an earlier run"


def test_a_kernel_that_dies(project):
    with pytest.raises(StageFailed, match="process ended by itself"): run_stage("toy", project("import os; os._exit(9)"), SEED, LiveLog(io.StringIO()))


def test_the_environment_of_a_stage(project, monkeypatch, tmp_path):
    "The running interpreter, whatever kernel is installed; no start-up files of a person; hash seed and threads fixed; the project's own package first."
    spec = tmp_path/"jupyter"/"kernels"/"python3"; spec.mkdir(parents=True)
    (spec/"kernel.json").write_text(json.dumps(dict(argv=["/bin/false"], display_name="broken", language="python")))
    startup = tmp_path/"ipython"/"profile_default"/"startup"; startup.mkdir(parents=True); (startup/"a.py").write_text("seed_of_a_person = 1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1"); monkeypatch.setenv("MPLBACKEND", "agg"); monkeypatch.delenv("CAD_THREADS", raising=False)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path/"jupyter")); monkeypatch.setenv("IPYTHONDIR", str(tmp_path/"ipython"))
    root = project("import os, sys, json, pathlib\npathlib.Path('seen').write_text(json.dumps([sys.executable, os.environ['PYTHONHASHSEED'], os.environ['PYTHONPATH'], 'seed_of_a_person' in globals(), os.environ['OMP_NUM_THREADS'], os.environ['MPLBACKEND']]))")
    run_stage("toy", root, SEED, LiveLog(io.StringIO()))
    executable, hash_seed, path, polluted, threads, backend = json.loads((root/"nbs"/"pipelines"/"seen").read_text())
    assert (executable, hash_seed, polluted, threads) == (sys.executable, "0", False, "2") and "inline" in backend and path.split(os.pathsep)[0] == str(root)


def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z" if Path(f"/proc/{pid}/stat").exists() else True


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_survives_a_killed_stage(project, sent):
    root = project("import os, time, pathlib\nfrom concurrent.futures import ProcessPoolExecutor\npool = ProcessPoolExecutor(1)\nworker = pool.submit(os.getpid).result()\npool.submit(time.sleep, 300)",
                   "pathlib.Path('pids').write_text(f'{os.getpid()} {worker}'); time.sleep(300)")
    running, pids, waited = cad(root, "stage", "toy", start_new_session=True), root/"nbs"/"pipelines"/"pids", time.monotonic()
    while not (pids.exists() and pids.read_text()):
        assert running.poll() is None and time.monotonic() - waited < 120, running.stdout.read()
        time.sleep(.1)
    running.send_signal(sent); said, _ = running.communicate(timeout=60)
    for _ in range(200):
        if not any(alive(int(p)) for p in pids.read_text().split()): break
        time.sleep(.1)
    else: pytest.fail("the kernel or its worker lives on")
    assert (root/"out"/"partial"/"1_toy.ipynb").is_file()
    if sent != signal.SIGKILL: assert running.returncode == 1 and f"stopped by {sent.name}" in said and "Traceback" not in said


def test_a_copy_of_the_project_runs_its_own_code(tmp_path):
    "As in `dvc exp run --queue`: another folder, same installation."
    shutil.copytree(ROOT/"cad_nb", tmp_path/"cad_nb", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path/"cad_nb"/"core.py").open("a").write("\nMARK = 'the copy'\n")
    (tmp_path/"params.yaml").write_text("seed: 3\n")
    write_notebook(tmp_path/"nbs"/"pipelines"/"1_toy.ipynb", "from cad_nb.core import MARK\nprint(MARK)")
    done = cad(tmp_path, "stage", "toy"); said, _ = done.communicate()
    assert done.returncode == 0 and "the copy" in said, said


# what a stage depends on ---------------------------------------------------------------------------------------------

def test_every_way_to_import_is_followed(tmp_path):
    lib = tmp_path/"lib"; (lib/"room").mkdir(parents=True)
    sources = {"__init__": "", "a": "def f():\n    from .room.b import x", "room/__init__": "", "room/b": "from ..c import y\nfrom . import d", "c": "import lib.e\nimport lib.a", "room/d": "import os", "e": "if True:\n    import lib.f as g",
               "f": "", "alone": "from .a import x"}
    for name, source in sources.items(): (lib/f"{name}.py").write_text(source)
    notebook = write_notebook(tmp_path/"nbs"/"1_x.ipynb", "%matplotlib inline\n!ls\nfrom lib import a")
    assert module_deps(notebook, lib) == [f"lib/{m}.py" for m in ("a", "c", "e", "f", "room/b", "room/d")]


def test_the_rest_of_dvc_yaml_stays():
    text = "# why\nstages:\n  one:\n    cmd: x\n    deps:\n    - n.ipynb  # the notebook\n    - lib/old.py\n    - data\n    params:\n    - gone\n    outs:\n    - a:\n        persist: true\n  two:\n    cmd: y\n    deps:\n    - lib/old.py\n\nplots: []\n"
    new = with_lists(text, {("one", "deps"): ["lib/b.py"], ("one", "params"): ["seed"], ("two", "deps"): ["lib/c.py"]}, "lib")
    assert new == text.replace("    - lib/old.py\n    - data\n", "    - data\n    - lib/b.py\n").replace("gone", "seed").replace("lib/old", "lib/c")
    assert yaml.safe_load(new)["stages"]["one"]["outs"] == [{"a": {"persist": True}}]


# log -----------------------------------------------------------------------------------------------------------------

def shown(*pieces, **kwargs):
    log = LiveLog(io.StringIO(), **kwargs)
    for p in pieces: log.write(p)
    return log.out.getvalue()


def test_the_log_keeps_lines_and_thins_bars():
    assert shown("a", "b\n", "c\r\n") == "ab\nc\n"
    assert shown("\r 1%", "\r 2%", "\r 3%", "\n") == " 3%\n"
    assert shown("\r 1%", "\r 2%", every_s=-1) == " 1%\n 2%\n"
    class Terminal(io.StringIO):
        def isatty(self): return True
    log = LiveLog(Terminal()); log.write("\r 1%"); log.write("\r 2%")
    assert log.out.getvalue() == "\r 1%\r 2%"


# the command ---------------------------------------------------------------------------------------------------------

def test_help_is_quick():
    code = "import sys, cad_nb.run.cli; print([m for m in ('torch', 'numpy', 'pandas', 'papermill', 'nbformat') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"
    took = []
    for _ in range(3):
        begun = time.monotonic(); subprocess.run([Path(sys.executable).parent/"cad", "--help"], capture_output=True, check=True, cwd=ROOT); took.append(time.monotonic() - begun)
    assert min(took) < 1.5, took


def test_doctor_tells_what_is_wrong(tmp_path, monkeypatch):
    "In a folder with wrong params, a corpus that is not there, and no git."
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("CAD_RESTARTED", "1"); monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path/"params.yaml").write_text("seed: x\ndevice: cpu\nprepare: {detector: nobody}\ncorpora:\n  mine: {layout: fakeavceleb, root: no/such/place, links: []}\n")
    for name in ("3.11", "3.12"): (tmp_path/f"constraints-{name}.txt").write_text("typer==0.0.1\nno-such-package==1.0\n")
    answer = CliRunner().invoke(app, ["doctor"])
    assert answer.exit_code == 1 and "Traceback" not in answer.output
    for words in ("`seed` must be a whole number", "typer", "not 0.0.1", "unknown detector 'nobody'", "corpora.mine.root", "no git checkout"): assert words in answer.output, words


def test_doctor_does_not_fail_here(monkeypatch):
    monkeypatch.chdir(ROOT)
    failing = [f for run in cli.CHECKS[:2] + cli.CHECKS[3:6] for f in run(ROOT) if f.level == "fail"]
    assert not failing


def doctor(folder, monkeypatch, **changes):
    "What the doctor finds of corpora, params and weights, with the sections of params.yaml changed."
    params = read_params(ROOT/"params.yaml")
    for section, values in changes.items(): params[section] = values if section == "corpora" else params[section] | values
    (folder/"params.yaml").write_text(yaml.safe_dump(params)); monkeypatch.chdir(folder)
    checks = {run.__name__: run for run in cli.CHECKS}
    return [f for name in ("check_params", "check_corpora", "check_weights") for f in checks[name](folder)]


def small_corpus(folder):
    "Two clips in the layout of FaceForensics++; the videos are empty files."
    for path in ("original_sequences/youtube/c23/videos/000.mp4", "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4"): (folder/path).parent.mkdir(parents=True); (folder/path).touch()
    return dict(layout="faceforensics", root=str(folder), links=[])


def test_doctor_looks_at_corpora(tmp_path, monkeypatch):
    (tmp_path/"empty"/"original_sequences").mkdir(parents=True); (tmp_path/"photos"/"holiday").mkdir(parents=True)
    entry = lambda name, layout="faceforensics": dict(layout=layout, root=name, links=[])
    said = {name: doctor(tmp_path, monkeypatch, corpora=dict(mine=corpus), split=dict(held_out=[])) for name, corpus in dict(
        empty=entry("empty"), photos=entry("photos"), none=entry("nowhere"), forged=entry("data/FaceForensics++"), layout=entry("empty", "faceforensic"), good=small_corpus(tmp_path/"good")).items()}
    found = {name: next(f for f in findings if f.topic == "corpora") for name, findings in said.items()}
    for name, level, words in (("empty", "fail", "no video in them"), ("photos", "fail", "neither"), ("none", "fail", "there is no folder"), ("forged", "warn", "not there yet"), ("layout", "fail", "is unknown"), ("good", "ok", "real, Deepfakes")):
        assert found[name].level == level and words in found[name].text, found[name]
        assert bool(found[name].mend) == (level != "ok")
    assert "corpora.mine.root" in found["photos"].mend and "faceforensics, fakeavceleb" in found["layout"].mend


def test_doctor_knows_the_methods(tmp_path, monkeypatch):
    corpora = dict(mine=small_corpus(tmp_path/"good"))
    (wrong,) = [f for f in doctor(tmp_path, monkeypatch, corpora=corpora, split=dict(held_out=["Deepfake", "lpc"])) if f.level == "fail"]
    assert "did you mean `Deepfakes`" in wrong.text and "split.held_out" in wrong.mend
    assert not [f for f in doctor(tmp_path, monkeypatch, corpora=corpora, split=dict(held_out=["Deepfakes"])) if f.level == "fail"]


def test_doctor_and_compare_notice_a_changed_corpus(tmp_path, monkeypatch):
    corpora = dict(mine=small_corpus(tmp_path/"away"/"FF"))
    project = tmp_path/"project"; project.mkdir()
    df, folders = read_corpora(corpora, project)
    keep_listings(project/"out"/"features", listings(df, folders, corpora, project))
    ask = lambda: [f for f in doctor(project, monkeypatch, corpora=corpora, split=dict(held_out=[])) if "has changed" in f.text]
    assert ask() == []
    (tmp_path/"away"/"FF"/"original_sequences/youtube/c23/videos/001.mp4").touch()
    (found,) = ask()
    assert found.level == "warn" and "now 3 clips" in found.text and "dvc repro -f -s prepare" in found.mend
    (project/"out"/"metrics").mkdir(); shutil.copy(ROOT/cli.RESULTS, project/cli.RESULTS)
    git(project, "init", "-q"); git(project, "add", "-A"); git(project, "commit", "-qm", "results")
    assert any("has changed since it was prepared" in line and "dvc repro -f -s prepare" in line for line in cli.verdict(project).details)


def test_doctor_looks_for_weights(tmp_path, monkeypatch):
    pytest.importorskip("transformers"); pytest.importorskip("peft")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path/"pickled").mkdir(); (tmp_path/"bare").mkdir(); (tmp_path/"bare"/"model.safetensors").touch(); (tmp_path/"good").mkdir()
    for name in ("model.safetensors", "config.json"): (tmp_path/"good"/name).touch()
    def ask(video, audio, download=False, encoder="pretrained"):
        found = doctor(tmp_path, monkeypatch, corpora={}, split=dict(held_out=[]), model=dict(encoder=encoder, pretrained=dict(video=video, audio=audio, lora_rank=0, download=download)))
        return [f for f in found if f.topic == "weights"]
    assert ask("no/such/folder", "nobody/has-this", encoder="compact") == []
    video, audio = ask("good", "no/such/folder")
    assert video.level == "ok" and audio.level == "fail" and "no folder" in audio.text and "hf download" in audio.mend and "hf download" not in audio.text
    assert [(f.level, words in f.text) for f, words in zip(ask("pickled", "bare"), ("no .safetensors", "no config.json"))] == [("fail", True)]*2
    assert [f.level for f in ask("nobody/has-this", "nobody/has-that")] == ["fail"]*2 and [f.level for f in ask("nobody/has-this", "nobody/has-that", True)] == ["warn"]*2


def test_the_command_as_a_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "cad_nb.run.cli", "stage", "toy"], cwd=tmp_path, env=dict(ENV, PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert done.returncode == 2 and "no params.yaml" in done.stderr and "Traceback" not in done.stderr


def test_compare_needs_something_to_compare_with(tmp_path):
    (tmp_path/"params.yaml").write_text("evaluate: {auc_tolerance: 0.02}\n")
    done = cad(tmp_path, "compare"); said, _ = done.communicate()
    assert done.returncode == 2 and "nothing to compare with" in said and "Traceback" not in said


def test_setup_without_python(tmp_path):
    "A python that is only a stub of a version manager is not taken for one, and the message says what to install."
    tools = tmp_path/"tools"; tools.mkdir()
    for name in ("cat", "cksum", "dirname"): (tools/name).symlink_to(shutil.which(name))
    (tools/"python3.11").write_text(f"#!{shutil.which('bash')}\necho 'command not found' >&2; exit 127\n"); (tools/"python3.11").chmod(0o755)
    (tmp_path/".ci").mkdir(); shutil.copy(ROOT/".ci"/"setup", tmp_path/".ci"); (tmp_path/"pyproject.toml").touch(); (tmp_path/"constraints-3.11.txt").touch()
    for more, words in (([], "No Python 3.11 or 3.12"), (["python9"], "PYTHON=python9 does not run")):
        done = subprocess.run([shutil.which("bash"), ".ci/setup", ".venv", "dev", *more], cwd=tmp_path, capture_output=True, text=True, env=dict(PATH=str(tools)))
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert not (tmp_path/".venv").exists()
