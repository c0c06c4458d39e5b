"""The documentation site: every notebook has its page, whole, found by the search, without a network; and the notebooks stay fit for nbdev_docs."""
import ast, builtins, importlib, importlib.util, json, re, shutil, sys
from pathlib import Path
from types import SimpleNamespace
import pytest

pytest.importorskip("myst_nb"); pytest.importorskip("furo")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"docs"))
import pages, quarto, signatures
build = importlib.util.module_from_spec(importlib.util.spec_from_file_location("docs_build", ROOT/"docs"/"build.py"))  # `build` is also a package of PyPI
build.__spec__.loader.exec_module(build)

def md(*lines): return dict(cell_type="markdown", metadata={}, source="\n".join(lines), id="a")
def cell(*lines, **kw): return dict(cell_type="code", metadata=kw, source="\n".join(lines), outputs=[], execution_count=None, id="b")
def save(path, *cells): pages.write_nb(dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5), path)

# --- the real site

@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site of this project, built once. `build` raises if Sphinx warns."
    out, said = tmp_path_factory.mktemp("docs")/"site", []
    made = build.build(ROOT, out, say=said.append)
    return SimpleNamespace(out=out, pages=made, said=said, html={p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*.html")})

def test_each_notebook_has_a_page(site):
    names = [p.relative_to(ROOT/"nbs") for p in (ROOT/"nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT/"nbs").parts)]
    assert len(names) == len(site.pages) > 20
    for name in names:
        doc = re.sub(r"^\d+[a-z]*_", "", name.stem.lower())
        page = site.html[(name.parent/f"{doc}.html").as_posix()]
        assert f"notebooks/{name.as_posix()}" in page and (site.out/"notebooks"/name).is_file(), f"{name}: no link to its source"

def test_pages_are_chained(site):
    "Next, next, next from the front page leads through every page."
    at, seen = "index.html", []
    while at and at not in seen:
        seen.append(at)
        ahead = re.search(r'<a class="next-page" href="([^"#]+)"', site.html[at])
        at = ahead and (Path(at).parent/ahead[1]).as_posix().replace("pipelines/../", "").replace("studies/../", "")
    assert {f"{p.doc}.html" for p in site.pages} <= set(seen)

def test_rooms_make_the_sidebar(site):
    captions = re.findall(r'class="caption"[^>]*><span class="caption-text">([^<]*)', site.html["index.html"])
    assert captions[0] == "Core" and captions[-1] == "Reference"
    assert [c for c in captions if c in ("Core", "Media", "Forge", "Data", "Models", "Learn", "Judge", "Explain", "Show", "Run")] == list(dict.fromkeys(p.room for p in site.pages[1:] if len(p.source.parts) == 1))

def test_search_knows_names(site):
    index = (site.out/"searchindex.js").read_text()
    index = json.loads(index[index.index("(")+1:index.rindex(")")])
    assert {"exact_div", "offset_curv", "spectrogram"} <= index["terms"].keys()
    assert any("write_whole" == t for t in index["alltitles"])
    assert {f"{p.doc}" for p in site.pages} <= set(index["docnames"])

def test_nothing_is_fetched(site):
    assert build.problems(site.out, site.pages) == []
    for name, html in site.html.items():
        loaded = re.findall(r"<script[^>]*\bsrc=\"([^\"]*)\"|<link[^>]*rel=\"(?:stylesheet|icon|preload)\"[^>]*href=\"([^\"]*)\"", html)
        for url in filter(None, (u for pair in loaded for u in pair)):
            assert "//" not in url and (site.out/Path(name).parent/url.split("?")[0]).resolve().is_file(), f"{name} loads {url}"
    for css in site.out.rglob("*.css"): assert not re.search(r"url\([\"']?https?:", css.read_text()), css

def test_links_lead_somewhere(site):
    for name, html in site.html.items():
        for url in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', html):
            path, _, part = url.partition("#")
            if re.match(r"[a-z]+:", path): continue
            to = (site.out/Path(name).parent/path).resolve() if path else site.out/name
            assert to.is_file(), f"{name} links to {url}"
            if part and to.suffix == ".html": assert re.search(rf'id="{re.escape(part)}"', to.read_text() if path else html), f"{name} links to {url}"

def test_documented_names(site):
    core = site.html["core.html"]
    assert core.count('<details class="api-source">') >= 10 and "SAMPLES_PER_FRAME" in core
    assert re.search(r'<a class="reference internal" href="#api-cad-nb-core-paramserror"><code[^>]*><span class="pre">ParamsError', core), "a backticked name is no link"
    assert "nbdev_export" not in "".join(h for n, h in site.html.items() if n.startswith("core")), "a hidden cell is shown"
    for p in site.pages:
        if p.module: assert re.search(rf"<code>cad_nb\.{re.escape(p.module)}</code>", site.html[f"{p.doc}.html"])

# --- a small project: stages, failures

@pytest.fixture
def small(tmp_path):
    "A project of three notebooks without a package."
    root = tmp_path/"project"
    shutil.copytree(ROOT/"nbs", root/"nbs", ignore=lambda d, names: names)
    shutil.copy(ROOT/"settings.ini", root/"settings.ini"); (root/"nbs"/"pipelines").mkdir(parents=True, exist_ok=True)
    save(root/"nbs"/"index.ipynb", md("# Small", "> What is this?"), md("See [train](pipelines/1_train.ipynb) and `double`.", "", "::: {.callout-tip collapse=\"true\"}", "## Why", "So: $x^2$.", ":::"))
    save(root/"nbs"/"00_core.ipynb", md("# Core", "> What is shared?"), cell("#| default_exp core"), cell("#| export", "def double(", "    x:int,  # any <number>", "    n:int=2,# how *often*", ")->int:     # `x` times n", '    "Twice."', "    return x*n"))
    train = [dict(cell_type="raw", metadata={}, source="---\nskip_exec: true\nskip_showdoc: true\n---", id="r"), md("# Train", "> Does it learn?"), cell("seed = 0", tags=["parameters"]), cell("print(seed)")]
    save(root/"nbs"/"pipelines"/"1_train.ipynb", *train)
    return root, train

def test_stage_pages(small, tmp_path):
    root, train = small
    build.build(root, tmp_path/"site", say=lambda s: None)
    html = (tmp_path/"site"/"pipelines"/"train.html").read_text()
    assert "Not run here yet" in html
    ran = json.loads(json.dumps(train))
    ran[3]["outputs"] = [dict(output_type="stream", name="stderr", text=t) for t in ("\r 10%", "\r100%\n")] + [dict(output_type="stream", name="stdout", text="seed is 7\n")]
    nb = dict(cells=[*ran[:3], cell("# Parameters", "seed = 7", tags=["injected-parameters"]), ran[3]], metadata=dict(papermill=dict(start_time="2024-01-02T03:04:05", duration=61.2)), nbformat=4, nbformat_minor=5)
    pages.write_nb(nb, root/"out"/"reports"/"1_train.ipynb")
    build.build(root, tmp_path/"site", say=lambda s: None)  # a site is replaced by the next one
    html = (tmp_path/"site"/"pipelines"/"train.html").read_text()
    assert "seed is 7" in html and "100%" in html and " 10%" not in html and "run 2024-01-02 03:04 in 61 s" in html
    assert "tag_injected-parameters" in html and "Not run here yet" not in html and "earlier version" not in html
    core = (tmp_path/"site"/"core.html").read_text()
    assert "any &lt;number&gt;" in core and "how *often*" in core and "<em>returns</em>" in core
    index = (tmp_path/"site"/"index.html").read_text()
    assert 'href="pipelines/train.html"' in index and 'href="core.html#api-cad-nb-core-double"' in index and "<summary" in index

def test_changed_notebook_is_told(small):
    root, train = small
    page = pages.Page(Path("pipelines/1_train.ipynb"), pages.read_nb(root/"nbs"/"pipelines"/"1_train.ipynb"))
    page.lay_over(dict(cells=[cell("print(seed + 1)")], metadata={}))
    assert page.run["older"] and not page.run["failed"]
    page.lay_over(dict(cells=[{**cell("1/0"), "outputs": [dict(output_type="error", ename="ZeroDivisionError", evalue="", traceback=[])]}], metadata={}))
    assert page.run["failed"]

def test_errors_name_the_notebook(small, tmp_path):
    root, _ = small
    index, again = root/"nbs"/"index.ipynb", root/"nbs"/"01_core.ipynb"
    def fails(pattern, to="site"):
        with pytest.raises((build.SiteError, ValueError), match=pattern): build.build(root, tmp_path/to, say=lambda s: None)
        assert not (tmp_path/"site").exists(), "a broken site was left"
    save(again, md("# Again")); fails("would both become core.html"); again.unlink()
    save(again, md("Hello")); fails("nbs/01_core.ipynb: the first Markdown cell must be"); again.unlink()
    save(again, cell("#| export", "def f(:"), md("# Broken")); fails("nbs/01_core.ipynb: an exported cell is no Python"); again.unlink()
    save(index, md("# Small"), md("[lost](nowhere.ipynb)")); fails(r"(?s)Sphinx is not content.*nbs/index\.ipynb.*nowhere")
    index.unlink(); fails("nbs/index.ipynb is missing")
    (tmp_path/"other").mkdir(); (tmp_path/"other"/"thesis.txt").write_text("dear"); fails("holds no site", "other")
    assert (tmp_path/"other"/"thesis.txt").read_text() == "dear"

def test_missing_and_remote_pages_are_found(tmp_path):
    (tmp_path/"index.html").write_text('<script defer src="https://cdn.example/x.js"></script><a href="https://fine.example">a link is fine</a>')
    lost = pages.Page(Path("10_media.audio.ipynb"), dict(cells=[md("# Audio")]))
    wrong = build.problems(tmp_path, [lost])
    assert len(wrong) == 2 and "nbs/10_media.audio.ipynb has no page media.audio.html" in wrong[0] and "cdn.example" in wrong[1]

def test_citation_and_changelog_name_this_version():
    import yaml
    cite, settings = yaml.safe_load((ROOT/"CITATION.cff").read_text()), (ROOT/"settings.ini").read_text()
    assert cite["version"] == re.search(r"^version = (.*)$", settings, flags=re.M)[1] and cite["version"] in (ROOT/"CHANGELOG.md").read_text()
    paper = cite["references"][0]
    assert paper["title"].startswith("CAD: A General Multimodal Framework") and len(paper["authors"]) == 7

# --- translation

def test_divs_nest_and_code_is_left_alone():
    out = quarto.divs("::: {.callout-note}\na\n::: {.callout-tip title=\"T\"}\nb\n:::\n:::\n```\n::: {.callout-note}\n```")
    assert out.startswith("::::::::{admonition} Note\n:class: note") and ":::::::{admonition} T\n:class: tip" in out and out.endswith("```\n::: {.callout-note}\n```")
    for wrong in (":::", "::: {.callout-note}", "::: {.callout-funny}\n:::"):
        with pytest.raises(ValueError): quarto.divs(wrong)

def test_title_cells_lose_nothing():
    assert pages.split_title("# T\n> Why\n> not?\n\nBecause.\n\n> quoted") == ["# T\n> Why not?", "Because.\n\n> quoted"]
    assert pages.split_title("# T") == ["# T"]

def test_references():
    out = quarto.labels("## Loss {#sec-loss}\n$$ x $$ {#eq-x}\nsee @eq-x, @sec-loss, @fig-lost, a@fig-b.org", "p-", {"sec-loss"})
    assert out == "(p-sec-loss)=\n## Loss\n$$ x $$ (p-eq-x)\nsee {eq}`p-eq-x`, [the section](#p-sec-loss), the figure, a@fig-b.org"

def test_words_left_numbers_right():
    pd = pytest.importorskip("pandas")
    html = quarto.columns_of_words(pd.DataFrame(dict(name=["a", "b"], auc=[.5, float("nan")], n=[1, 2])).to_html())
    assert html.count('class="words"') == 3 and '<th class="words">name</th>' in html and '<td class="words">a</td>' in html
    assert quarto.columns_of_words("<table><tbody></tbody></table>").count("words") == 0

SOURCE = '''
@dataclass
class Clip:
    "A clip."
    path:str            # where it lies,
                        # as a path
    label:int|None=None # 1 is fake
    def frames(self)->list: # all of them
        return []
    def cut(self,
        start:int=0, # first frame
        # last frame, exclusive
        end:int=None,
        *names,
        **options,   # passed on
    )->"Clip": "A part."
    def _hidden(self): pass
'''

def test_docments():
    d = signatures.definitions(SOURCE)["Clip"]
    assert d.head == "class Clip(path, label=None)" and d.doc == "A clip." and d.is_data
    assert [(p.name, p.kind, p.default, p.details) for p in d.params] == [("path", "str", "", "where it lies, as a path"), ("label", "int | None", "None", "1 is fake")]
    frames, cut = d.methods
    assert (frames.name, frames.head, frames.returns.details) == ("Clip.frames", ".frames() -> list", "all of them")
    assert [(p.name, p.details) for p in cut.params] == [("start", "first frame"), ("end", "last frame, exclusive"), ("*names", ""), ("**options", "passed on")]
    assert cut.returns.kind == "Clip" and cut.doc == "A part."

def test_a_comment_may_speak_of_two():
    d = signatures.definitions("def f(\n    x:int, y:int, # centre\n    w:int=1, # width\n)->int: return x")["f"]
    assert [p.details for p in d.params] == ["centre", "centre", "width"] and d.head == "f(x, y, w=1) -> int"
    d = signatures.definitions("def g(x:int, y:int)->int: # the sum\n    return x + y")["g"]
    assert [p.details for p in d.params] == ["", ""] and d.returns.details == "the sum" and d.head == "g(x: int, y: int) -> int"

def test_every_exported_name_is_described():
    "The signatures of the whole package can be read, and agree with Python's own view of the parameters."
    for path in sorted((ROOT/"nbs").glob("*.ipynb")):
        page = pages.Page(path.relative_to(ROOT/"nbs"), pages.read_nb(path))
        for cell in (c for c in page.nb["cells"] if c["cell_type"] == "code" and "export" in quarto.directives(c["source"])):
            for node in ast.parse(quarto.body(cell["source"])).body:
                if not isinstance(node, ast.FunctionDef): continue
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else []))]
                assert [p.name.lstrip("*") for p in page.defs[node.name].params] == names, f"{path.name}: {node.name}"

# --- the notebooks stay fit for nbdev_docs

def bound_and_used(src):
    "Names that a piece of code binds, and names that it needs from elsewhere."
    tree = ast.parse(src)
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)} | {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    bound |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and n.name}
    for n in ast.walk(tree):
        if not isinstance(n, (ast.Import, ast.ImportFrom)): continue
        for a in n.names:
            if a.name == "*": m = importlib.import_module(n.module); bound |= set(getattr(m, "__all__", None) or (k for k in vars(m) if k[0] != "_"))
            else: bound.add((a.asname or a.name).split(".")[0])
    return bound, {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - bound - set(dir(builtins)) - {"get_ipython", "display"}

@pytest.mark.parametrize("path", sorted((ROOT/"nbs").glob("[0-9]*.ipynb")), ids=lambda p: p.stem)
def test_cells_with_imports_stand_alone(path):
    """nbdev_docs runs exported cells, and every cell that holds an import, and no other. So a cell with an import must not use what a lesson cell made."""
    known = set()
    for i, c in enumerate(pages.read_nb(path)["cells"]):
        if c["cell_type"] != "code" or "nbdev_export" in c["source"]: continue
        has, src = quarto.directives(c["source"]), re.sub(r"^[%!].*$", "", quarto.body(c["source"]), flags=re.M)
        runs = {"export", "exports", "exporti"} & has.keys() or any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(ast.parse(src)))
        if not runs or has.get("eval") == "false": continue
        bound, used = bound_and_used(src)
        if not {"export", "exports", "exporti"} & has.keys():
            assert not used - known, f"{path.name}, cell {i}: nbdev_docs would run this cell without {sorted(used - known)}; move its import to the hidden cell of imports"
        known |= bound


def test_the_readme_is_the_index_notebook():
    "`python docs/readme.py` would change nothing."
    import importlib.util
    spec = importlib.util.spec_from_file_location("readme", ROOT/"docs"/"readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT/"README.md").read_text() == module.readme()


def test_the_front_page_has_the_numbers_of_the_files():
    "A run that is committed without its front page would leave two answers to one question."
    import pandas as pd
    readme = (ROOT/"README.md").read_text()
    for table, rows in (("results", "all seen held_out"), ("complementarity", "all")):
        found = pd.read_csv(ROOT/"out"/"metrics"/f"{table}.csv").query("test_corpus == 'fakeavceleb' and category == 'all'")
        means = found[found.method.isin(rows.split())].groupby(["model", "method"])[["auc", "auc_lo", "auc_hi"]].mean()
        assert len(means) >= 2
        for r in means.itertuples(): assert f"{r.auc:.3f} ({r.auc_lo:.3f} to {r.auc_hi:.3f})" in readme, (table, r.Index)
