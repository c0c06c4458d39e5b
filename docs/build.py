#!/usr/bin/env python
"""Build the documentation site from the notebooks: `python docs/build.py` writes `_docs/`, to be opened from the disk or served.

nbdev prepares the notebooks as it does for Quarto, `pages` turns the result into MyST, Sphinx makes the pages. Nothing is executed
but exported cells and imports (that is how nbdev finds signatures), and nothing is fetched."""
import argparse, os, re, shutil, subprocess, sys, tempfile, time
from configparser import ConfigParser
from pathlib import Path
from pages import Page, Site, read_nb, write_nb

HERE = Path(__file__).resolve().parent
STAGES = "pipelines", "studies"  # folders of notebooks that are executed by papermill, not by hand

class SiteError(Exception):
    "The site cannot be built from these notebooks; the message says which one and why."

def find_pages(
    root:Path,        # the project: settings.ini, nbs/
)->list[Page]:        # in reading order: the index, the rooms by number, then the folders
    "One page for each notebook that nbdev would publish."
    nbs = root/"nbs"
    names = sorted(p.relative_to(nbs) for p in nbs.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(nbs).parts))
    if not any(str(n) == "index.ipynb" for n in names): raise SiteError("nbs/index.ipynb is missing: it is the front page of the site and the README")
    names.sort(key=lambda n: (str(n) != "index.ipynb", len(n.parts), n.parts))
    pages = [Page(n, read_nb(nbs/n)) for n in names]
    for a in pages:
        for b in pages:
            if a is not b and a.doc == b.doc: raise SiteError(f"nbs/{a.source} and nbs/{b.source} would both become {a.doc}.html: rename one")
    return pages

def executed(
    root:Path,   # the project
    page:Page,   # a page of nbs/pipelines or nbs/studies
)->Path|None:    # its executed copy, if the stage has been run
    "The notebook that papermill left in out/reports for this page."
    places = root/"out"/"reports"/page.source.name, root/"out"/"reports"/page.source
    return next((p for p in places if p.is_file()), None)

def copy_sources(
    root:Path,         # the project
    to:Path,           # an empty folder, which becomes a project that nbdev can read
    pages:list[Page],  # what to copy; learns here which of them have been executed
):
    "A copy of the notebooks, with the executed stages laid over the committed ones."
    shutil.copytree(root/"nbs", to/"nbs", ignore=shutil.ignore_patterns(".*", "_*", "*.tmp", "*.part"))
    for name in ("settings.ini", "params.yaml"):
        if (root/name).is_file(): shutil.copy(root/name, to/name)
    for page in pages:
        if page.source.parts[0] in STAGES:
            page.run = "never"
            if report := executed(root, page): page.lay_over(read_nb(report))
        write_nb(page.for_nbdev(), to/"nbs"/page.source)

def process(
    root:Path,     # the project, whose cad_nb is imported
    project:Path,  # the copy; nbdev writes its `_proc` there
)->Path:           # folder of processed notebooks
    "What nbdev_docs does before it calls Quarto: signatures, links, hidden cells. In a process of its own, since it runs exported cells."
    call = "import sys; from nbdev.serve import proc_nbs; proc_nbs(path=sys.argv[1], n_workers=0)"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]), MPLBACKEND="agg", IPYTHONDIR=str(project))
    done = subprocess.run([sys.executable, "-c", call, str(project/"nbs")], cwd=project, env=env, capture_output=True, text=True)
    if done.returncode: raise SiteError(f"nbdev could not process the notebooks (`nbdev_docs` would fail alike):\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    return project/"_proc"

def sphinx(
    src:Path,   # converted notebooks
    out:Path,   # html
    root:Path,  # the project, for its settings
    names:dict, # docname to notebook, for the messages
):
    "Pages from converted notebooks. Every warning is an error, told in terms of the notebook that a person can mend."
    cmd = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "auto", "-b", "html", "-c", str(HERE), "-d", str(src.parent/"doctrees"), str(src), str(out)]
    done = subprocess.run(cmd, env=dict(os.environ, CAD_NB_ROOT=str(root), PYTHONWARNINGS="ignore"), capture_output=True, text=True)
    if done.returncode or done.stderr.strip():
        said = re.sub(rf"{re.escape(str(src))}/(\S+?)\.ipynb(?::(\d+))?", lambda m: names.get(m[1], m[0]) + (f" (converted cell {int(m[2])//10000})" if m[2] else ""), done.stderr)
        raise SiteError(f"Sphinx is not content:\n{said[-6000:]}")

def problems(
    out:Path,          # the built site
    pages:list[Page],  # what should be in it
)->list[str]:          # empty when all is well
    "What a reader would miss: a page that is not there, or one that needs the network."
    wrong = [f"nbs/{p.source} has no page {p.doc}.html" for p in pages if not (out/f"{p.doc}.html").is_file()]
    remote = re.compile(r"<(?:script|img|iframe|audio|video|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'>\s]+|<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^\"'>\s]+|@import[^;]*//[^;]+")
    for html in sorted(out.rglob("*.html")):
        wrong += [f"{html.relative_to(out)} needs the network: {m[0]}" for m in remote.finditer(html.read_text())]
    return wrong

def build(
    root:Path,            # the project
    out:Path,             # where the site goes; replaced as a whole, and only when the new one is good
    keep:Path|None=None,  # a folder for what lies between notebooks and pages, to look at
    say=print,            # told what is being done
)->list[Page]:            # what was built
    "The whole site. Raises `SiteError` where a page would be missing, wrong or in need of the network."
    if out.exists() and any(out.iterdir()) and not (out/"_static"/"site.css").is_file(): raise SiteError(f"{out} is not empty and holds no site: it is left as it is")
    settings = ConfigParser(); settings.read(root/"settings.ini"); settings = dict(settings["DEFAULT"])
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="cad_nb_docs_") as tmp:
        work = Path(keep or tmp).resolve()
        if keep: shutil.rmtree(work, ignore_errors=True)
        project, src, html = work/"project", work/"src", work/"html"
        for folder in (project, src): folder.mkdir(parents=True)
        pages = find_pages(root)
        ran = lambda: f"{time.time() - start:5.1f} s"
        copy_sources(root, project, pages)
        n_run = sum(p.run not in (None, "never") for p in pages)
        n_stage = sum(p.run is not None for p in pages)
        say(f"{ran()}  {len(pages)} notebooks, {n_run} of {n_stage} stages and studies with their outputs" + ("" if n_run else " (`make reproduce` makes them)"))
        proc = process(root, project)
        say(f"{ran()}  processed by nbdev")
        site = Site(pages, settings, root)
        site.convert(proc, src)
        say(f"{ran()}  converted, {len(site.labels)} documented names")
        sphinx(src, html, root, {p.doc: f"nbs/{p.source}" for p in pages})
        for p in pages:  # what a page was made from, beside the page: links work without a network
            to = html/"notebooks"/p.source; to.parent.mkdir(parents=True, exist_ok=True)
            write_nb(p.shown, to)
        if wrong := problems(html, pages): raise SiteError("\n".join(wrong))
        shutil.rmtree(out, ignore_errors=True); out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(html, out, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv", "_sources"))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    say(f"{ran()}  {len(pages)} pages, {size:.1f} MB: open {out/'index.html'}")
    return pages

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the project (default: the one this script lies in)")
    parser.add_argument("--out", type=Path, help="folder of the site (default: ROOT/_docs)")
    parser.add_argument("--keep", type=Path, help="keep the converted notebooks in this folder")
    args = parser.parse_args()
    try: build(args.root.resolve(), (args.out or args.root/"_docs").resolve(), args.keep)
    except (SiteError, ValueError) as e: sys.exit(f"docs: {e}")
