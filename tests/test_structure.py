"""The house rules: which room may know which, one name in five places, notebooks that are pages and not containers, nothing of one machine in any file."""
import ast, dataclasses, json, re, subprocess, sys, tomllib
from configparser import ConfigParser
import nbformat, pytest, yaml
from conftest import ROOT, tracked_files
from cad_nb.core import read_params
from cad_nb.run.stages import DVC_FILES, SECTIONS, check_params, current_dvc, declared, dvc_stages, local_imports, notebook_source, section_kind, stage_notebooks, stage_params

LIB = ROOT/"cad_nb"
NUMBERS = dict(core=(0, 0), media=(10, 19), forge=(20, 29), data=(30, 39), models=(40, 49), learn=(50, 59), judge=(60, 69), explain=(70, 79), show=(80, 89), run=(90, 99))
MAY_IMPORT = dict(core=[], media=["core"], models=["core"], show=["core"], forge=["core", "media"], data=["core", "media", "forge"], explain=["core", "models"],
                  learn=["core", "models"], judge=["core", "data", "models", "media", "explain"], run=list(NUMBERS))
FLOORS = [["core"], ["media", "models", "show"], ["data", "forge", "explain"], ["learn", "judge", "run"]]
ONLY = dict(av=["media", "run.cli"], cv2=["media"], torchcodec=[], soundfile=["media"], captum=["explain"], matplotlib=["show"], papermill=["run"], nbclient=["run"],  # run.cli lists the versions
            dvc=["run"], dvclive=["learn", "run"], nbdev=[], fastcore=[], sklearn=["judge.study"], facenet_pytorch=[], mtcnn=[])
LIGHT = ["core", "learn", "judge.metrics", "models."]

library = sorted(p for p in (ROOT/"nbs").glob("[0-9][0-9]_*.ipynb"))
modules = {".".join(p.relative_to(LIB).with_suffix("").parts): p for p in sorted(LIB.rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")}
stages = stage_notebooks(ROOT)
room = lambda module: module.split(".")[0]
number = {p.stem.split("_", 1)[1]: int(p.stem.split("_")[0]) for p in library}


def inner_imports(module):
    "Modules of cad_nb that a module imports, inside functions too."
    return {".".join(p.relative_to(LIB).with_suffix("").parts) for p in local_imports(modules[module].read_text(), f"cad_nb.{module}", LIB)}


def outer_imports(module, top_only=False):
    "Packages that a module imports."
    tree = ast.parse(modules[module].read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    return {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names} | {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}


# rooms ---------------------------------------------------------------------------------------------------------------

def test_each_module_has_its_notebook():
    assert sorted(modules) == sorted(number), "modules and library notebooks differ"
    for p in library: assert f"#| default_exp {p.stem.split('_', 1)[1]}" in nbformat.read(p, 4).cells[1].source, p.name


def test_numbers_belong_to_rooms():
    assert len(set(number.values())) == len(number), "two notebooks have the same number"
    for module, n in number.items():
        low, high = NUMBERS[room(module)]
        assert low <= n <= high, f"{n}_{module} is outside of {low}-{high}"


@pytest.mark.parametrize("module", modules)
def test_imports_go_down(module):
    for other in inner_imports(module):
        assert number[other] < number[module], f"{module} imports {other}, which has a higher number"
        assert room(other) == room(module) or room(other) in MAY_IMPORT[room(module)], f"{module} may not know {other}"


def test_the_floors_have_no_stairs_up():
    floor = {r: i for i, rooms in enumerate(FLOORS) for r in rooms}
    assert set(floor) == set(NUMBERS) == set(MAY_IMPORT)
    for r, others in MAY_IMPORT.items(): assert all(floor[o] <= floor[r] for o in others), r


@pytest.mark.parametrize("module", modules)
def test_only_the_right_room_uses_a_library(module):
    for package in outer_imports(module) & ONLY.keys():
        assert any(module == m or room(module) == m for m in ONLY[package]), f"{module} imports {package}"


@pytest.mark.parametrize("module", modules)
def test_only_models_holds_networks(module):
    classes = [n for n in ast.walk(ast.parse(modules[module].read_text())) if isinstance(n, ast.ClassDef)]
    nets = [n.name for n in classes if any(ast.unparse(b) in ("nn.Module", "Module", "torch.nn.Module") for b in n.bases)]
    assert not nets or room(module) == "models" or module == "media.faces", f"{module} holds the networks {nets}"


@pytest.mark.parametrize("module", [m for m in modules if any(m == l or l[-1] == "." and m.startswith(l) for l in LIGHT)])
def test_training_needs_little(module):
    heavy = outer_imports(module, top_only=True) - {"torch", "torchaudio", "numpy"} - set(sys.stdlib_module_names)
    assert not heavy, f"{module} imports {heavy} when it is imported; a bare GPU machine has only torch, torchaudio and numpy"


def test_training_imports_little():
    names = [m for m in modules if any(m == l or l[-1] == "." and m.startswith(l) for l in LIGHT)]
    code = f"import sys, importlib\nbase = set(sys.modules)\nfor m in {names}: importlib.import_module('cad_nb.' + m)\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())
    assert not loaded & {"pandas", "av", "matplotlib", "captum", "papermill", "transformers", "peft", "accelerate", "sklearn", "nbdev", "fastcore", "typer", "yaml"}


def test_no_cupboard_room():
    assert not [m for m in modules if re.search(r"utils?|helpers?|common|misc", m)]


# one name in five places ---------------------------------------------------------------------------------------------

def test_stage_section_notebook_command_report():
    pipelines = {name: p for name, p in stages.items() if p.parent.name == "pipelines"}
    if not pipelines: pytest.skip("no stage notebook yet")
    entries, params = dvc_stages(ROOT), read_params(ROOT/"params.yaml")
    assert list(entries) == list(pipelines), "dvc.yaml and nbs/pipelines differ"
    for name, notebook in pipelines.items():
        assert name in params and name in SECTIONS, f"params.yaml has no section {name}"
        assert entries[name]["cmd"] == f"cad stage {name}"
        assert entries[name]["deps"][0] == notebook.relative_to(ROOT).as_posix(), name
        assert name in declared(notebook), f"{notebook.name} does not read the section of its name"
    assert [int(p.stem.split("_")[0]) for p in pipelines.values()] == list(range(len(pipelines)))


def test_studies_have_a_pipeline_file_of_their_own():
    "One name in five places for them too; their paths are the project's; and what they write is written by no stage of the other file."
    studies = {name: p for name, p in stages.items() if p.parent.name == "studies"}
    entries, params = dvc_stages(ROOT, DVC_FILES[1]), read_params(ROOT/"params.yaml")
    assert list(entries) == list(studies), "nbs/studies/dvc.yaml and the notebooks beside it differ"
    assert not set(entries) & set(dvc_stages(ROOT)), "a stage stands in both files"
    for name, notebook in studies.items():
        assert name in params and name in SECTIONS and name in declared(notebook)
        assert entries[name]["wdir"] == "../.." and entries[name]["cmd"] == f"cad stage {name}" and entries[name]["deps"][0] == notebook.relative_to(ROOT).as_posix()
    written = [outs_of(e) for f in DVC_FILES for e in dvc_stages(ROOT, f).values()]
    assert len({p for paths in written for p in paths}) == sum(map(len, written)), "two stages write the same file"


@pytest.mark.parametrize("file", DVC_FILES)
def test_deps_are_the_import_closure(file):
    if not stages: pytest.skip("no stage notebook yet")
    assert current_dvc(ROOT, file=file) == (ROOT/file).read_text(), "run `cad deps --write`"


@pytest.mark.parametrize("name", stages)
def test_stage_parameters_are_right(name): stage_params(name, ROOT)


def test_every_section_is_declared_by_a_room():
    check_params(read_params(ROOT/"params.yaml"))
    if len(stages) >= 5: assert set(read_params(ROOT/"params.yaml")) == set(SECTIONS)


def dataclasses_in(kind):
    "A dataclass and those of its fields."
    kind = kind["*"] if isinstance(kind, dict) else kind
    if not dataclasses.is_dataclass(kind): return []
    return [kind, *(d for f in dataclasses.fields(kind) for d in dataclasses_in(f.type))]


@pytest.mark.parametrize("section", [s for s in SECTIONS if s in read_params(ROOT/"params.yaml")])
def test_numbers_live_in_params_yaml_alone(section):
    for kind in dataclasses_in(section_kind(SECTIONS[section])):
        given = [f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING]
        assert not given, f"{kind.__name__} has defaults for {given}"


def outs_of(entry):
    "Path to options of all that a stage writes."
    return {(out if isinstance(out, str) else next(iter(out))): ({} if isinstance(out, str) else next(iter(out.values()))) for key in ("outs", "metrics", "plots") for out in entry.get(key, [])}


def test_outputs_are_git_s_or_dvc_s():
    "What DVC keeps, git ignores; what git keeps of a run, DVC does not cache."
    if not (ROOT/".git").exists(): pytest.skip("not a git checkout")
    ignored = lambda path: subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0
    for entry in (e for f in DVC_FILES for e in dvc_stages(ROOT, f).values()):
        for path, options in outs_of(entry).items(): assert ignored(path) == options.get("cache", True), path
    assert ignored("data") and not ignored("data.dvc") and ignored("out/reports/2_train.html") and ignored("out/partial/2_train.ipynb")


# notebooks -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", stages)
def test_stage_notebooks_define_nothing_and_hold_no_outputs(name):
    nb = nbformat.read(stages[name], 4)
    assert nb.cells[0].cell_type == "raw" and "skip_exec: true" in nb.cells[0].source and "skip_showdoc: true" in nb.cells[0].source, "the first cell keeps nbdev from running it"
    assert nb.cells[1].source.startswith("# ") and "\n> " in nb.cells[1].source, "a title and a question"
    defined = [n.name for n in ast.walk(ast.parse(notebook_source(stages[name]))) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    assert not defined, f"{defined}: code belongs into a room"
    for cell in nb.cells:
        if cell.cell_type == "code": assert not cell.outputs and cell.execution_count is None, cell.source[:60]
    (parameters,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    for line in ast.parse(parameters.source).body: assert ast.unparse(line.value) in ("None", "{}"), f"{ast.unparse(line)}: numbers live in params.yaml"


@pytest.mark.parametrize("path", library, ids=lambda p: p.stem)
def test_library_notebooks_are_pages(path):
    cells = nbformat.read(path, 4).cells
    assert re.match(r"# .+\n> .+\?", cells[0].source), "a title and a question"
    assert cells[-1].source.startswith("#| hide") and "nbdev_export()" in cells[-1].source
    exported = [c.source for c in cells if c.cell_type == "code" and re.match(r"#\| ?export", c.source)]
    assert not [s for s in exported if re.search(r"^\s*from \S+ import \*", s, re.M)], "explicit names in exported cells"
    for c in cells:
        for out in c.get("outputs", []): assert out["output_type"] != "error", f"{path.name} was saved with an error: {out.get('evalue')}"


# files ---------------------------------------------------------------------------------------------------------------

def texts():
    for name in tracked_files():
        try: yield name, (ROOT/name).read_text()
        except UnicodeDecodeError: pass


def test_no_package_hosts_and_no_paths_of_one_machine():
    hosts = "|".join(["py" + r"pi\.org", "python" + "hosted", "index" + "-url", "find" + "-links", "registry" + r"\.npmjs", "download" + r"\.pytorch", "conda" + r"\.anaconda", "arti" + "factory"])
    paths = "|".join(rf"(?<![\w.:/\\-])/{p}/\w" for p in ("home", "root", "Users", "work", "mnt", "opt/\\w+"))
    found = [f"{name}: {m[0]}" for name, text in texts() if name.name != "test_structure.py" for m in re.finditer(f"{hosts}|{paths}", text)]
    assert not found, "\n".join(found)


def test_saved_outputs_are_the_same_on_any_machine():
    found = []
    for name, text in texts():
        if name.suffix != ".ipynb": continue
        for cell in json.loads(text)["cells"]:
            shown = json.dumps([{k: v for k, v in o.get("data", o).items() if not k.startswith("image/")} for o in cell.get("outputs", [])])
            found += [f"{name}: {m[0]}" for m in re.finditer(r"/tmp/\w+|/var/folders|0x[0-9a-f]{8,}", shown)]
    assert not found, "\n".join(found)


def test_settings_and_pyproject_agree():
    settings, project = ConfigParser(), tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
    settings.read(ROOT/"settings.ini"); s = settings["DEFAULT"]
    import cad_nb
    assert s["lib_name"] == project["name"] and s["version"] == project["version"] == cad_nb.__version__ and s["description"] == project["description"]
    assert f">={s['min_python']}" in project["requires-python"]


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_constraints_pin_every_dependency(version):
    lines = [l for l in (ROOT/f"constraints-{version}.txt").read_text().splitlines() if not l.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", l) for l in lines), "only name==version"
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    pinned = {plain(l.split("==")[0]) for l in lines}
    project = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
    extras = [r for name, rs in project["optional-dependencies"].items() if name != "espeak" for r in rs]  # optional and not installed by make
    for requirement in [*project["dependencies"], *extras]: assert plain(re.match(r"[\w.-]+", requirement)[0]) in pinned, requirement


def test_readme_begins_with_the_two_commands():
    if not (ROOT/"nbs"/"index.ipynb").is_file(): pytest.skip("no index yet")
    readme = (ROOT/"README.md").read_text()
    assert 0 < readme.index("make reproduce") < 4000 and 0 < readme.index("make test") < 4000


def test_make_and_ci_are_one():
    assert "make test" in (ROOT/".ci"/"run").read_text() and "bash .ci/run" in (ROOT/".github"/"workflows"/"test.yml").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT/"Makefile").read_text(), re.M))
    assert {"help", "setup", "reproduce", "studies", "test", "lab", "docs"} <= targets
