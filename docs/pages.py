"""Notebooks that nbdev has processed become notebooks that MyST-NB reads: pages that know what they define and where to find the rest."""
import ast, copy, json, os, re
from pathlib import Path
from urllib.parse import urlsplit
import yaml
from quarto import body, code, columns_of_words, directives, divs, headings, inline, labels, outside_code, quiet
from signatures import Definition, Param, definitions

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((<[^>]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)((?:\s+\"[^\"]*\")?)\)(\{[^}\n]*\})?")
NAME = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")  # in backticks and not yet a link
SHOW_DOC = re.compile(r"^show_doc\(\s*([\w.]+)", flags=re.M)
FRONT = re.compile(r"^---\s*\n(.*?)\n---\s*$", flags=re.S)
MIMES = "image/png", "image/jpeg", "image/svg+xml", "image/gif", "text/html", "text/markdown", "text/latex", "text/plain"
PICTURES = ".png", ".svg", ".jpg", ".jpeg", ".gif"

def read_nb(path:Path)->dict:
    "A notebook as a dict, each source and output as one string."
    nb = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        cell["source"] = "".join(cell.get("source") or "")
        for o in cell.get("outputs", []):
            if "text" in o: o["text"] = "".join(o["text"])
            for mime, v in o.get("data", {}).items():
                if isinstance(v, list): o["data"][mime] = "".join(v)
    return nb

def write_nb(nb:dict, path:Path):
    "Write a notebook."
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(nb, indent=1, ensure_ascii=False), encoding="utf-8")

def only_constants(src:str)->bool:
    "Whether an exported cell defines values but no function or class: nbdev would hide it, though others use these names."
    nodes = ast.parse(src).body
    defines = lambda *kinds: any(isinstance(n, kinds) for n in nodes)
    return defines(ast.Assign, ast.AnnAssign) and not defines(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

def markdown_cell(source:str)->dict: return dict(cell_type="markdown", metadata={}, source=source)

def notebook(cells:list)->dict:
    "Cells as a notebook for MyST-NB."
    cells = [{**c, "id": f"cell-{i}"} for i, c in enumerate(cells)]
    kernel, language = dict(display_name="Python 3", language="python", name="python3"), dict(name="python", pygments_lexer="ipython3")
    return dict(cells=cells, nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel, language_info=language))

def split_title(source:str)->list[str]:
    "The first cell as title and question, which nbdev reads, and the rest, which it would drop."
    lines = source.split("\n")
    question = [i for i, l in enumerate(lines) if l.startswith(">")]
    question = [i for n, i in enumerate(question) if i == question[0] + n]  # the first block of them
    top = [lines[0]] + (["> " + " ".join(lines[i].lstrip("> ") for i in question)] if question else [])
    rest = "\n".join(l for i, l in enumerate(lines) if i and i not in question).strip()
    return ["\n".join(top), rest] if rest else ["\n".join(top)]

class Page:
    "A notebook and the page that it becomes."
    def __init__(self,
        source:Path,  # path below nbs/
        nb:dict,      # the committed notebook
    ):
        self.source, self.nb, self.shown, self.run = source, nb, nb, None
        stem = re.sub(r"^\d+[a-zA-Z0-9]*_", "", source.stem.lower())  # nbdev's rule for the address of a page
        self.doc = (source.parent/stem).as_posix()
        self.room = (source.parts[0] if len(source.parts) > 1 else stem.split(".")[0]).capitalize()
        self.prefix = re.sub(r"[^a-z0-9]+", "-", self.doc) + "-"
        self.up = "../" * (len(source.parts) - 1)
        self.module, self.defs, self.labels = None, {}, set()
        for cell in nb["cells"]:
            if cell["cell_type"] == "code": self.learn(cell["source"])
        self.check_title()

    def learn(self,
        src:str,  # source of a code cell
    ):
        "What an exported cell defines."
        has = directives(src)
        self.module = has.get("default_exp", self.module)
        if not {"export", "exports"} & has.keys() or "hide" in has: return
        try: self.defs.update(definitions(body(src)))
        except SyntaxError as e: raise ValueError(f"nbs/{self.source}: an exported cell is no Python: {e}") from None

    def check_title(self):
        "A page needs a title: nbdev takes it from the first Markdown cell."
        first = next((c["source"] for c in self.nb["cells"] if c["cell_type"] == "markdown" and c["source"].strip()), "")
        if not re.match(r"#\s+\S", first): raise ValueError(f"nbs/{self.source}: the first Markdown cell must be `# Title`, then `> question`")

    def lay_over(self,
        ran:dict,  # the notebook as papermill left it
    ):
        "Show an executed notebook in place of the committed one, and know what is to be said about the run."
        injected = lambda c: "injected-parameters" in c["metadata"].get("tags", [])
        sources = lambda nb: [c["source"].strip() for c in nb["cells"] if c["cell_type"] == "code" and c["source"].strip() and not injected(c)]
        about = ran["metadata"].get("papermill", {})
        failed = about.get("exception") or any(o["output_type"] == "error" for c in ran["cells"] for o in c.get("outputs", []))
        self.run = dict(start=about.get("start_time"), seconds=about.get("duration"), failed=bool(failed), older=sources(self.nb) != sources(ran))
        self.shown = ran

    def for_nbdev(self)->dict:
        "The notebook so marked that nbdev leaves exported constants and all prose on the page, and runs nothing where the source says all that `show_doc` would."
        cells, titled = [], False
        for cell in copy.deepcopy(self.shown["cells"]):
            if cell["cell_type"] == "markdown" and cell["source"].strip() and not titled:
                titled = True
                cells += [{**cell, "source": s, "id": f"title-{i}"} for i, s in enumerate(split_title(cell["source"].strip()))]
                continue
            if cell["cell_type"] == "code" and "export" in directives(cell["source"]) and only_constants(body(cell["source"])):
                cells.append({**cell, "source": body(cell["source"]), "id": cell.get("id", "cell") + "-shown"})
            cells.append(cell)
        if all(name in self.defs for c in cells if c["cell_type"] == "code" for name in SHOW_DOC.findall(c["source"])):
            cells.insert(0, dict(cell_type="raw", metadata={}, source="---\nskip_showdoc: true\n---", id="front"))
        return {**self.shown, "cells": cells}

class Site:
    "All pages together: what they define, and how one finds the other."
    def __init__(self,
        pages:list[Page],  # in reading order, the index first
        settings:dict,     # settings.ini
        root:Path,         # the project
    ):
        self.pages, self.root, self.lib = pages, root, settings["lib_name"]
        self.base = settings["doc_host"].rstrip("/") + "/" + settings["doc_baseurl"].strip("/") + "/"  # where nbdev's links point
        self.files = f"{settings['git_url'].rstrip('/')}/blob/{settings['branch']}/"
        self.by_source, self.by_doc = {p.source.as_posix(): p for p in pages}, {p.doc: p for p in pages}
        self.by_module = {f"{self.lib}.{p.module}": p for p in pages if p.module}
        self.labels, self.names = {}, {}  # full name to its label on the page; name as written to the full names it can mean

    # --- names and links

    def full(self, page:Page, name:str)->str: return f"{self.lib}.{page.module}.{name}"

    def document(self,
        page:Page,  # where
        name:str,   # a function, a class, `Class.method`
    ):
        "Give a documented name its label, which links refer to. `Speaker` and `speaker` get different ones."
        full, taken = self.full(page, name), set(self.labels.values())
        slug = "api-" + re.sub(r"[^a-z0-9]+", "-", full.lower())
        self.labels.setdefault(full, next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, 99))) if s not in taken))
        for word in (name, full, full.removeprefix(f"{self.lib}.")): self.names.setdefault(word, set()).add(full)

    def to(self, page:Page, other:Page)->str:
        "The path from one page to another."
        return os.path.relpath(f"{other.doc}.ipynb", Path(page.doc).parent.as_posix())

    def link_name(self,
        word:str,   # a name as it stands in backticks
        call:str,   # "()" or ""
        page:Page,  # where it stands
    )->str|None:
        "A link to where the name is documented (on this page, or the only one of that name) or to the page of its module."
        means = self.names.get(word, set())
        if self.full(page, word) in means: means = {self.full(page, word)}
        if len(means) == 1: return f"[`{word}{call}`](#{self.labels[next(iter(means))]})"
        room = self.by_module.get(word) or self.by_module.get(f"{self.lib}.{word}")
        if room and room is not page and not call: return f"[`{word}`]({self.to(page, room)})"

    def linkify(self, md:str, page:Page)->str:
        "Text with links at its backticked names."
        return NAME.sub(lambda m: self.link_name(m[1], m[2] or "", page) or m[0], md)

    def relink(self,
        m:re.Match,  # one link or image
        page:Page,   # where it stands
    )->str:
        "A link as it must read on its page."
        image, text, url, title, attrs = m[1], m[2], m[3].strip("<>"), m[4], m[5] or ""
        as_is = f"{image}[{text}]({m[3]}{title})"
        if image:
            sizes = [s.replace('"', "") for s in re.findall(r"(?:width|height)=\"?[\w.%]+\"?", attrs)]
            return as_is + (f"{{{' '.join(sizes)}}}" if sizes else "")
        word = re.fullmatch(r"`([^`]+?)(\(\))?`", text)
        if url.startswith(self.base):
            other = self.by_doc.get(url.removeprefix(self.base).split(".html")[0])
            if word: return self.link_name(word[1], word[2] or "", page) or text
            return f"[{text}]({self.to(page, other)})" if other else text
        if word and re.match(r"https?://[\w.-]*(fast\.ai|answerdotai|fastcore)", url): return text  # nbdev takes our word for one of its own
        path, _, part = url.partition("#")
        if not path or urlsplit(url).scheme or url.startswith("//"): return as_is
        at = os.path.normpath((Path("nbs")/page.source.parent/path).as_posix())
        if other := self.by_source.get(at.removeprefix("nbs/")) if at.startswith("nbs/") else None: return f"[{text}]({self.to(page, other)}{'#' + part if part else ''})"
        is_here = at.startswith("nbs/") and at.endswith(PICTURES)
        return f"[{text}]({self.files}{at}{title})" if (self.root/at).exists() and not is_here else as_is

    def markdown(self, md:str, page:Page)->str:
        "A Markdown cell in MyST."
        try: md = divs(md)
        except ValueError as e: raise ValueError(f"nbs/{page.source}: {e}") from None
        return outside_code(lambda s: labels(self.linkify(LINK.sub(lambda m: self.relink(m, page), s), page), page.prefix, page.labels), md)

    # --- documented names

    def words(self, p:Param, page:Page)->str:
        "The comment of a parameter, with links."
        return self.linkify(quiet(inline(p.details)), page)

    def table(self, d:Definition, page:Page)->str:
        "Parameters and result: a table; a sentence where there is only a result; nothing where the signature says it all."
        back = d.returns if d.returns and d.returns.details else None
        if not d.params and back: return f"Returns {code(back.kind) + ': ' if back.kind else ''}{self.words(back, page)}{'' if back.details[-1] in '.!?' else '.'}"
        if not back and not any(p.details for p in d.params): return ""
        default = (lambda p: [code(inline(p.default))]) if any(p.default for p in d.params) else (lambda p: [])
        rows = [["Field" if d.is_data else "Parameter", "Type", *(["Default"] if default(d.params[0]) else []), "Details"]]
        rows += [[code(p.name), code(p.kind), *default(p), self.words(p, page)] for p in d.params]
        if back: rows.append(["*returns*", code(back.kind), *default(back), self.words(back, page)])
        lines = [("* - " if i == 0 else "  - ") + cell for row in rows for i, cell in enumerate(row)]
        return "\n".join(["::::{list-table}", ":class: api-table", ":header-rows: 1", "", *lines, "::::"])

    def entry(self,
        d:Definition,  # a function, a class, or a method
        page:Page,     # where it is documented
        level:int,     # of the heading; 0 for a method below its class, which has none
    )->str:
        "What stands on the page for one name: how to call it, what it does, its parameters, its source."
        out = [f"({self.labels[self.full(page, d.name)]})=", f"{'#' * level} `{d.name}`" if level else "", ""]
        out += ["::::{code-block} python", ":class: api-sig" + ("" if level else " api-method"), "", d.head, "::::", ""]
        out += [self.linkify(d.doc, page), "", self.table(d, page), "", *(self.entry(m, page, 0) for m in d.methods)]
        if d.source: out += ["", '<details class="api-source"><summary>Source</summary>', "", "`````python", d.source, "`````", "", "</details>", ""]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(out))

    def show_doc(self,
        cell:dict,  # a cell `show_doc(name)`, by nbdev or by a person
        page:Page,  # where it stands
        level:int,  # of the heading
    )->str:
        "What the page says in place of a `show_doc` cell."
        name = SHOW_DOC.search(cell["source"])[1]
        if d := page.defs.get(name):
            owner = page.defs.get(name.split(".")[0])
            told = "." in name and self.full(page, owner.name) in self.labels  # with its class
            return "" if told else self.entry(d, page, level)
        for o in cell.get("outputs", []):  # defined elsewhere: as nbdev shows it
            if md := o.get("data", {}).get("text/markdown"):
                md = re.sub(r"^---\n|^\[source\]\([^)]*\)\{[^}]*\}\n", "", md, flags=re.M)
                return self.markdown(re.sub(r"^#+ ", "#"*level + " ", md, count=1, flags=re.M), page)
        raise ValueError(f"nbs/{page.source}: {cell['source'].splitlines()[-1]!r} shows nothing")

    # --- cells and notebooks

    def outputs(self,
        outputs:list,  # of one cell
        has:dict,      # its directives
    )->list:
        "Outputs as a reader wants them: each stream in one piece, progress bars as they ended, no widgets."
        out, streams = [], {}
        for o in copy.deepcopy(outputs):
            if o["output_type"] == "stream":
                if o["name"] == "stderr" and has.get("warning") == "false": continue
                if o["name"] in streams: streams[o["name"]]["text"] += o["text"]; continue
                streams[o["name"]] = o
            if "data" in o:
                o["data"] = {k: v for k, v in o["data"].items() if k in MIMES}
                if "text/html" in o["data"]: o["data"]["text/html"] = columns_of_words(o["data"]["text/html"])
                if not o["data"]: continue
            if "execution_count" in o: o["execution_count"] = None
            out.append(o)
        for o in streams.values(): o["text"] = "\n".join(l.rstrip("\r").split("\r")[-1] for l in o["text"].split("\n"))
        return [o for o in out if o["output_type"] != "stream" or o["text"].strip()]

    def code_cell(self,
        cell:dict,  # as nbdev left it
        page:Page,  # where it stands
    )->list:        # no, one or two cells
        "A code cell, its directives turned into tags."
        has, src = directives(cell["source"]), body(cell["source"])
        outputs = [] if has.get("output") == "false" else self.outputs(cell.get("outputs", []), has)
        tags = {t for t in cell["metadata"].get("tags", []) if re.fullmatch(r"[\w-]+", t)}
        if has.get("code-fold") == "true": tags.add("hide-input")
        if has.get("echo") == "false" or not src.strip(): tags.add("remove-input")
        if has.get("include") == "false" or "remove-input" in tags and not outputs: return []
        meta = dict(tags=sorted(tags)) if tags else {}
        if has.get("fig-cap"):
            meta["mystnb"] = dict(figure=dict(caption=self.markdown(has["fig-cap"], page), **(dict(name=page.prefix + has["label"]) if "label" in has else {})))
        new = dict(cell_type="code", metadata=meta, source=src, outputs=outputs, execution_count=None)
        if has.get("output") != "asis": return [new]
        printed = "\n\n".join(o.get("text") or o.get("data", {}).get("text/markdown", "") for o in outputs)
        return [{**new, "outputs": []}]*("remove-input" not in tags) + [markdown_cell(self.markdown(printed, page))]

    def head(self, page:Page, fm:dict)->str:
        "Title, question, where the page comes from, and whether it has been run."
        where = [page.room] * (page is not self.pages[0]) + [f"<code>{self.lib}.{page.module}</code>"] * bool(page.module)
        if isinstance(page.run, dict):
            start, seconds = page.run["start"] or "", page.run["seconds"]
            where.append(f"run {start[:16].replace('T', ' ')}" + (f" in {seconds:.0f} s" if seconds else ""))
        where.append(f'<a href="{page.up}notebooks/{page.source.as_posix()}" download>nbs/{page.source.as_posix()}</a>')
        lead = f":::{{container}} lead\n{self.linkify(str(fm['description']), page)}\n:::" if fm.get("description") else ""
        say = lambda title, kind, text: f":::{{admonition}} {title}\n:class: {kind}\n{text}\n:::"
        note = ""
        if page.run == "never": note = say("Not run here yet", "note", "`make reproduce` runs this notebook; `make docs` then shows it with its outputs.")
        elif page.run and page.run["failed"]: note = say("This run failed", "warning", "What follows is the notebook up to the cell that raised an error.")
        elif page.run and page.run["older"]: note = say("From an earlier version", "note", "The notebook has been changed since this run. `make reproduce` runs it again.")
        return "\n\n".join(filter(None, [f"# {fm['title']}", lead, f'<p class="where">{" <span>·</span> ".join(where)}</p>', note]))

    def convert_page(self,
        page:Page,  # which
        nb:dict,    # as nbdev left it
    )->dict:
        "A whole notebook in MyST."
        front = next((m for c in nb["cells"] if c["cell_type"] == "raw" and (m := FRONT.match(c["source"].strip()))), None)
        fm = yaml.safe_load(front[1]) if front else {}
        if "title" not in fm: raise ValueError(f"nbs/{page.source} has no title: its first Markdown cell must be `# Title`, then `> question`")
        for cell in nb["cells"]:  # what can be referred to: labelled headings, and figures that have been drawn
            if cell["cell_type"] == "markdown": page.labels |= set(re.findall(r"\{#([\w-]+)", cell["source"]))
            elif cell.get("outputs") and "fig-cap" in (has := directives(cell["source"])): page.labels.add(has.get("label"))
        cells, level = [markdown_cell(self.head(page, fm))], 1
        for cell in nb["cells"]:
            src = cell["source"]
            if cell["cell_type"] == "raw" or "WARNING: THIS FILE WAS AUTOGENERATED" in src: continue
            if cell["cell_type"] == "markdown":
                level = (headings(src) or [level])[-1]
                cells.append(markdown_cell(self.markdown(src, page)))
            elif SHOW_DOC.search(src): cells.append(markdown_cell(self.show_doc(cell, page, min(level + 1, 6))))
            else: cells += self.code_cell(cell, page)
        return notebook(cells)

    def navigation(self)->str:
        "Hidden tables of contents that make the sidebar: a heading for each room, its pages by number."
        rooms = {}
        for p in self.pages[1:]: rooms.setdefault(p.room, []).append(p.doc)
        if self.labels: rooms["Reference"] = ["names"]
        return "\n\n".join("\n".join(["```{toctree}", ":hidden:", f":caption: {room}", "", *(f"/{d}" for d in docs), "```"]) for room, docs in rooms.items())

    def all_names(self)->dict:
        "A page with every documented name and what it does in a line."
        out = ["# All names", "", ":::{container} lead", "Which functions and classes are there, and where?", ":::", ""]
        for page in self.pages:
            here = sorted((d for d in page.defs.values() if "." not in d.name and self.full(page, d.name) in self.labels), key=lambda d: d.name.lower())
            if not here: continue
            out += [f"## [`{self.lib}.{page.module}`](/{page.doc}.ipynb)", "", "::::{list-table}", ":class: names", ""]
            for d in here: out += [f"* - [`{d.name}`](#{self.labels[self.full(page, d.name)]})", f"  - {self.linkify(inline(d.doc.split(chr(10)*2)[0]), self.pages[0])}"]
            out += ["::::", ""]
        return notebook([markdown_cell("\n".join(out))])

    def convert(self,
        proc:Path,  # what nbdev wrote
        to:Path,    # where the notebooks for Sphinx go
    ):
        "All pages, their pictures, and the navigation."
        nbs = {}
        for page in self.pages:
            if not (proc/page.source).is_file(): raise ValueError(f"nbdev left no page for nbs/{page.source}")
            nbs[page] = read_nb(proc/page.source)
            for cell in nbs[page]["cells"]:  # all labels first: pages refer to each other
                for name in SHOW_DOC.findall(cell["source"]) if cell["cell_type"] == "code" else []:
                    if name in page.defs:
                        for d in (page.defs[name], *page.defs[name].methods): self.document(page, d.name)
        for page, nb in nbs.items():
            new = self.convert_page(page, nb)
            if page is self.pages[0]: new = notebook([*new["cells"], markdown_cell(self.navigation())])
            write_nb(new, to/f"{page.doc}.ipynb")
        if self.labels: write_nb(self.all_names(), to/"names.ipynb")
        for f in proc.rglob("*"):
            if f.suffix.lower() in PICTURES:
                (to/f.relative_to(proc)).parent.mkdir(parents=True, exist_ok=True)
                (to/f.relative_to(proc)).write_bytes(f.read_bytes())
