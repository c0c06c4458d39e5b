"""The whole pipeline in small, in a clone of the project as it stands: it runs, does nothing when run again, and knows what a change affects."""
import json, os, subprocess, sys
from pathlib import Path
import pandas as pd, pytest, yaml
from conftest import ROOT, clone, git
from smoke_params import shrink
from cad_nb.run.stages import dvc_stages, stage_notebooks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(len(stage_notebooks(ROOT)) < 5, reason="not all stage notebooks are there yet")]
BIN = Path(sys.executable).parent


def dvc(folder, *words):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CAD_RESTARTED")} | dict(PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", DVC_NO_ANALYTICS="1", DVC_SITE_CACHE_DIR=str(folder/".dvc"/"tmp"/"site"))
    done = subprocess.run(["dvc", *words], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"dvc {' '.join(words)}\n{done.stdout[-8000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = clone(tmp_path_factory.mktemp("small")/"project")
    shrink(folder)
    git(folder, "commit", "-qam", "small")
    said = dvc(folder, "repro")
    git(folder, "add", "-A"); git(folder, "commit", "-qm", "results")
    return folder, said


def changed(folder):
    "Stages that `dvc repro` would run because of something of their own. The studies are not among them."
    return set(json.loads(dvc(folder, "status", "--json", "dvc.yaml", "data.dvc")))


def test_every_stage_runs(small):
    folder, said = small
    for name in dvc_stages(folder):
        assert f"Running stage '{name}'" in said and f"{name}: done in" in said
        assert (folder/"out"/"reports"/stage_notebooks(folder)[name].with_suffix(".html").name).is_file()
    assert "Importing 'corpora' -> 'data'" in said


def test_what_comes_out(small):
    folder, _ = small
    results = pd.read_csv(folder/"out"/"metrics"/"results.csv")
    assert list(results.columns) == ("model train_corpus test_corpus protocol category method seed n_real n_fake coverage auc auc_lo auc_hi ap_fake ap_real eer bal_acc threshold split_hash checkpoint_hash params_hash").split()
    assert {"naive", "cad"} <= set(results.model) and results.auc.dropna().between(0, 1).all()
    assert dvc(folder, "metrics", "show").count("summary.json") >= 1
    for entry in dvc_stages(folder).values():
        for key in ("outs", "metrics", "plots"):
            for out in entry.get(key, []): assert (folder/(out if isinstance(out, str) else next(iter(out)))).exists(), out


def test_the_second_run_does_nothing(small):
    folder, _ = small
    said = dvc(folder, "repro")
    assert "Running stage" not in said and "up to date" in said
    assert subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True).stdout == ""


def test_a_lost_folder_comes_back_from_the_cache(small):
    folder, _ = small
    import shutil
    for name in ("data", "out/scores"): shutil.rmtree(folder/name)
    said = dvc(folder, "repro")
    assert "> cad stage" not in said and (folder/"out"/"scores").is_dir() and any((folder/"data").iterdir())


def test_prose_changes_nothing(small):
    folder, _ = small
    for path in (folder/"nbs").glob("[0-9]*.ipynb"):
        nb = json.loads(path.read_text())
        nb["cells"][0]["source"] = [*nb["cells"][0]["source"], "\n\nAnother sentence."]
        path.write_text(json.dumps(nb))
    assert changed(folder) == set()
    git(folder, "checkout", "nbs")


def test_a_module_concerns_its_stages_and_no_other(small):
    folder, _ = small
    deps = {name: [d for d in entry["deps"] if d.startswith("cad_nb/")] for name, entry in dvc_stages(folder).items()}
    modules = sorted({d for ds in deps.values() for d in ds})
    by_stages = {frozenset(n for n, ds in deps.items() if m in ds): m for m in modules}  # one module for each set of stages
    assert len(by_stages) > 1
    for expected, module in by_stages.items():
        with open(folder/module, "a") as f: f.write("\n# changed\n")
        assert changed(folder) == expected, module
        git(folder, "checkout", module)


def test_a_param_concerns_its_stages_and_no_other(small):
    folder, _ = small
    params = folder/"params.yaml"; before = params.read_text()
    for section in ("forge", "train", "attribute"):
        values = yaml.safe_load(before); key, value = next((k, v) for k, v in values[section].items() if type(v) is int)
        values[section][key] = value + 1
        params.write_text(yaml.safe_dump(values, sort_keys=False))
        assert changed(folder) == {n for n, e in dvc_stages(folder).items() if section in e["params"]}
    assert "train.epochs" not in dvc(folder, "params", "diff") and "attribute." in dvc(folder, "params", "diff")
    params.write_text(before)
    assert changed(folder) == set()


def test_an_experiment_runs_the_stages_it_concerns(small):
    folder, _ = small
    said = dvc(folder, "exp", "run", "--temp", "-S", "train.epochs=1", "-n", "one-epoch")
    assert "Running stage 'train'" in said and "Running stage 'forge'" not in said and "Running stage 'prepare'" not in said
    shown = dvc(folder, "exp", "show", "--csv", "--only-changed")
    assert "one-epoch" in shown
    assert subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True).stdout == ""
