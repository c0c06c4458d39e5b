"""Turn notebooks that nbdev has processed for Quarto into notebooks that MyST-NB reads.

The notebooks stay in the syntax of nbdev and Quarto, so `nbdev_docs` builds from them as well. What is translated here: front matter, `#|` directives,
callouts and other fenced divs, cross references, links between notebooks, and the output of `show_doc`."""
import ast, copy, json, os, re
from pathlib import Path
from urllib.parse import urlsplit
import yaml
from signatures import Definition, Param, definitions

LEAD = re.compile(r"^(?:[ \t]*#\|[^\n]*(?:\n|$))+")           # directives at the top of a cell
FENCE = re.compile(r"^( {0,3})(```+|~~~+)")
DIV_OPEN, DIV_CLOSE = re.compile(r"^:{3,}\s*(\{[^}]*\}|[\w-]+)\s*$"), re.compile(r"^:{3,}\s*$")
CALLOUTS = "note", "tip", "warning", "important", "caution"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((<[^>]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)((?:\s+\"[^\"]*\")?)\)(\{[^}\n]*\})?")
CODE = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")  # a backticked name that is not yet a link
SHOW_DOC = re.compile(r"^show_doc\(\s*([\w.]+)", flags=re.M)
SHOWN_MIMES = "image/png", "image/jpeg", "image/svg+xml", "image/gif", "text/html", "text/markdown", "text/latex", "text/plain", "application/json"

def read_nb(path:Path)->dict:
    "A notebook as a dict, each source and stream as one string."
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

def directives(src:str)->dict:
    "The `#|` lines at the top of a cell: `#| export` becomes {'export': ''}, `#| echo: false` becomes {'echo': 'false'}."
    lead = LEAD.match(src)
    pairs = (re.match(r"\s*#\|\s*([\w-]+)\s*:?\s*(.*)$", l) for l in (lead[0].splitlines() if lead else []))
    return {m[1]: m[2].strip().strip("\"'") for m in pairs if m}

def body(src:str)->str:
    "A cell's source without directives."
    return LEAD.sub("", src)

def only_constants(src:str)->bool:
    "An exported cell that defines values but no function or class: nbdev would hide it, though others use these names."
    try: nodes = ast.parse(src).body
    except SyntaxError: return False
    return any(isinstance(n, (ast.Assign, ast.AnnAssign)) for n in nodes) and not any(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for n in nodes)

def mark_for_nbdev(nb:dict, defined:set)->dict:
    "The notebook so marked that nbdev leaves exported constants on the page, and runs nothing where the source says all that `show_doc` would."
    cells = []
    for cell in copy.deepcopy(nb["cells"]):
        if cell["cell_type"] == "code" and "export" in directives(cell["source"]) and only_constants(body(cell["source"])):
            cells.append({**cell, "source": body(cell["source"]), "id": cell.get("id", "cell") + "-shown"})
        cells.append(cell)
    if all(name in defined for c in cells if c["cell_type"] == "code" for name in SHOW_DOC.findall(c["source"])):
        cells.insert(0, dict(cell_type="raw", metadata={}, source="---\nskip_showdoc: true\n---", id="front"))
    return {**nb, "cells": cells}

def outside_code(f, md:str)->str:
    "Apply `f` to the runs of lines that are not in a code fence."
    out, run, fence = [], [], None
    for line in md.split("\n"):
        m = FENCE.match(line)
        if fence is None and m:
            if run: out.append(f("\n".join(run))); run = []
            fence = m[2]; out.append(line)
        elif fence is not None:
            out.append(line)
            if m and m[2].startswith(fence[:3]) and len(m[2]) >= len(fence) and not line.strip("`~ "): fence = None
        else: run.append(line)
    if run: out.append(f("\n".join(run)))
    return "\n".join(out)

def quiet(s:str)->str:
    "Plain words made safe for Markdown; what stands in backticks stays code."
    return re.sub(r"`[^`]*`|[\\*_\[\]<>$|~#{}]", lambda m: m[0] if len(m[0]) > 1 else "\\" + m[0], s)

def code(s:str)->str:
    "Inline code, whatever is in it."
    return "" if not s else f"`` {s} ``" if "`" in s else f"`{s}`"

def inline(s:str)->str:
    "One line of a table cell or of a list."
    return re.sub(r"\s*\n\s*", " ", s).strip()

def align(html:str)->str:
    "A data frame with its words on the left and its numbers on the right."
    if 'class="dataframe"' not in html or "span=" in html: return html
    head, *rest = html.split("<tbody>", 1)
    if not rest: return html
    is_number = lambda s: re.fullmatch(r"\s*(?:[-+]?[\d.,]+(?:e[-+]?\d+)?\s*%?|[-+]?inf|NaN|None|NaT|&lt;NA&gt;|-|)\s*", s)
    rows = [re.findall(r"<td>(.*?)</td>", r, flags=re.S) for r in re.findall(r"<tr[^>]*>(.*?)</tr>", rest[0], flags=re.S)]
    words = [any(not is_number(r[i]) for r in rows if i < len(r)) for i in range(max(map(len, rows), default=0))]
    mark = lambda row, tag: (lambda i: re.sub(rf"<{tag}>", lambda m: f'<{tag} class="words">' if words[min(next(i), len(words)-1)] else m[0], row))(iter(range(999)))
    body = re.sub(r"<tr[^>]*>.*?</tr>", lambda m: mark(m[0], "td"), rest[0], flags=re.S)
    n_index = len(re.findall(r"<th", re.search(r"<tr[^>]*>.*?</tr>", rest[0], flags=re.S)[0])) if rows else 0
    def top(m):
        i = iter(range(-n_index, 999))
        return re.sub(r"<th>", lambda t: '<th class="words">' if 0 <= (j := next(i)) < len(words) and words[j] else t[0], m[0])
    return re.sub(r"<tr[^>]*>.*?</tr>", top, head, flags=re.S) + "<tbody>" + body

def callouts(md:str, where:str)->str:
    "Quarto's fenced divs as MyST directives: callouts become admonitions, other divs containers."
    lines, stack, out, fence = md.split("\n"), [], [], None
    for i, line in enumerate(lines):
        if m := FENCE.match(line):
            if fence is None: fence = m[2][:3]
            elif m[2].startswith(fence): fence = None
        if fence is None and (m := DIV_OPEN.match(line)):
            attrs = m[1].strip("{}")
            classes = re.findall(r"\.([\w-]+)", attrs) if "{" in m[1] else [attrs]
            kind = next((c[8:] for c in classes if c.startswith("callout-")), None)
            title = re.search(r"title=\"([^\"]*)\"", attrs)
            stack.append(len(out)); out.append((kind, classes, title and title[1], "collapse" in attrs))
        elif fence is None and DIV_CLOSE.match(line):
            if not stack: raise ValueError(f"{where}: a `:::` closes nothing (a callout must open and close in one cell)")
            start = stack.pop(); kind, classes, title, folds = out[start]; inside = out[start+1:]; del out[start:]
            while inside and not inside[0].strip(): inside.pop(0)
            if title is None and kind and inside and (h := re.match(r"#{1,6}\s+(.*)", inside[0])): title = h[1]; inside.pop(0)
            bar = ":" * (8 - min(len(stack), 5))
            if kind and kind not in CALLOUTS: raise ValueError(f"{where}: `.callout-{kind}` is none of {', '.join(CALLOUTS)}")
            if kind: head = [f"{bar}{{admonition}} {title or kind.capitalize()}", f":class: {kind}"] + [":collapsible: closed"]*folds
            else: head = [f"{bar}{{container}} {' '.join(classes)}"]
            out += [*head, "", *inside, bar]
        else: out.append(line)
    if stack: raise ValueError(f"{where}: a `:::` is not closed in its cell")
    return "\n".join(out)

class Page:
    "A notebook and the page that it becomes."
    def __init__(self,
        source:Path,  # path below nbs/
    ):
        self.source, self.run, self.shown, self.marks = source, None, None, set()
        stem = re.sub(r"^\d+[a-zA-Z0-9]*_", "", source.stem.lower())  # nbdev's rule for the page of a notebook
        self.doc = (source.parent/stem).as_posix()
        self.room = (source.parts[0] if len(source.parts) > 1 else stem.split(".")[0]).capitalize()
        self.slug = re.sub(r"[^a-z0-9]+", "-", self.doc) + "-"
        self.up = "../" * (len(source.parts) - 1)

    def read(self,
        nb:dict,  # the committed notebook
    ):
        "Learn what the notebook exports."
        self.shown, self.module, self.defs = nb, None, {}
        for cell in nb["cells"]:
            if cell["cell_type"] != "code": continue
            has = directives(cell["source"])
            if "default_exp" in has: self.module = has["default_exp"].split()[0] if has["default_exp"] else re.search(r"default_exp\s+(\S+)", cell["source"])[1]
            if {"export", "exports"} & has.keys() and "hide" not in has:
                try: self.defs.update(definitions(body(cell["source"])))
                except SyntaxError as e: raise ValueError(f"nbs/{self.source}: an exported cell is no Python: {e}") from None

    def lay_over(self,
        nb:dict,   # the committed notebook
        ran:dict,  # as papermill left it
    )->tuple[dict, dict]:
        "The executed notebook to show, and what to say about the run."
        sources = lambda n: [c["source"].strip() for c in n["cells"] if c["cell_type"] == "code" and "injected-parameters" not in c["metadata"].get("tags", []) and c["source"].strip()]
        about = ran["metadata"].get("papermill", {})
        failed = about.get("exception") or any(o["output_type"] == "error" for c in ran["cells"] for o in c.get("outputs", []))
        self.shown = ran
        return ran, dict(start=about.get("start_time"), seconds=about.get("duration"), failed=bool(failed), older=sources(nb) != sources(ran))

class Site:
    "All pages together: what they define, and how one finds the other."
    def __init__(self,
        pages:list[Page],  # in reading order
        settings:dict,     # settings.ini
        root:Path,         # the project
    ):
        self.pages, self.settings, self.root, self.lib = pages, settings, root, settings["lib_name"]
        self.base = settings["doc_host"].rstrip("/") + "/" + settings["doc_baseurl"].strip("/") + "/"
        self.by_source = {p.source.as_posix(): p for p in pages}
        self.by_doc = {p.doc: p for p in pages}
        self.by_module = {f"{self.lib}.{p.module}": p for p in pages if p.module}
        self.labels, self.names = {}, {}  # full name to label; short name to full names
        for p in pages:
            if not p.module: continue
            for name in p.defs:
                full = f"{self.lib}.{p.module}.{name}"
                if not any(part.startswith("_") for part in name.split(".")): self.names.setdefault(name, []).append(full); self.names[full] = [full]

    # names and links

    def find(self, name:str, page:Page)->str|None:
        "The documented name that a backticked word means: of this page, or the only one of that name."
        full = self.names.get(name) or self.names.get(f"{self.lib}.{name}") or []
        here = [f for f in full if page.module and f == f"{self.lib}.{page.module}.{name}"]
        hit = here or full if len(here or full) == 1 else []
        return hit[0] if hit and hit[0] in self.labels else None

    def link_name(self, word:str, call:str, page:Page)->str|None:
        "A backticked name as a link to where it is documented, or to the page of its room."
        if full := self.find(word, page): return f"[`{word}{call}`](#{self.labels[full]})"
        room = self.by_module.get(word) or self.by_module.get(f"{self.lib}.{word}")
        if room and room is not page and not call: return f"[`{word}`]({self.to(page, room)})"

    def to(self, page:Page, other:Page)->str:
        "The path from one page to another."
        return os.path.relpath(f"{other.doc}.ipynb", Path(page.doc).parent.as_posix())

    def linkify(self, md:str, page:Page)->str:
        "Links for the backticked names of a text that nbdev has not seen."
        return CODE.sub(lambda m: self.link_name(m[1], m[2] or "", page) or m[0], md)

    def relink(self, m:re.Match, page:Page)->str:
        "One link or image of a notebook, as it must read on its page."
        bang, text, url, title, attrs = m[1], m[2], m[3].strip("<>"), m[4], m[5] or ""
        sizes = re.findall(r"(?:width|height)=\"?[\w.%]+\"?", attrs)
        if bang: return f"![{text}]({m[3]}{title})" + ("{" + " ".join(s.replace('"', "") for s in sizes) + "}" if sizes else "")
        word = re.fullmatch(r"`([^`]+?)(\(\))?`", text)
        if url.startswith(self.base) and word: return self.link_name(word[1], word[2] or "", page) or text
        if url.startswith(self.base): return f"[{text}]({self.to(page, other)})" if (other := self.by_doc.get(url[len(self.base):].split(".html")[0])) else text
        if word and re.match(r"https?://[\w.-]*\bfast\.ai/|https?://[\w.-]*answerdotai|https?://[\w.-]*fastcore", url): return text  # a word of ours that fastcore or nbdev has too
        path, _, part = url.partition("#")
        if urlsplit(url).scheme or url.startswith(("//", "#", "mailto:")) or not path: return f"[{text}]({m[3]}{title})"
        at = os.path.normpath((Path("nbs")/page.source.parent/path).as_posix())
        if at.startswith("nbs/") and (other := self.by_source.get(at[4:])): return f"[{text}]({self.to(page, other)}{'#' + part if part else ''})"
        if (self.root/at).exists() and not (at.startswith("nbs/") and at.endswith((".png", ".svg", ".jpg", ".gif"))):
            return f"[{text}]({self.settings['git_url'].rstrip('/')}/blob/{self.settings['branch']}/{at}{title})"
        return f"[{text}]({m[3]}{title})"

    def markdown(self, md:str, page:Page)->str:
        "A Markdown cell in MyST."
        md, at = callouts(md, f"nbs/{page.source}"), page.slug  # Quarto's labels hold within a page
        def text(s):
            s = LINK.sub(lambda m: self.relink(m, page), s)
            s = self.linkify(s, page)
            s = re.sub(r"^(#{1,6} .*?)\s*\{#([\w-]+)[^}]*\}\s*$", rf"({at}\2)=\n\1", s, flags=re.M)  # a heading that can be referred to
            s = re.sub(r"^(#{1,6} .*?)\s*\{[.-][^}]*\}\s*$", r"\1", s, flags=re.M)                # classes of a heading
            s = re.sub(r"\$\$\s*\{#(eq-[\w-]+)\}", rf"$$ ({at}\1)", s)
            s = re.sub(r"(?<![\w`\[])@(eq-[\w-]+)", rf"{{eq}}`{at}\1`", s)
            return re.sub(r"(?<![\w`\[])@((fig|tbl|sec)-[\w-]*\w)", lambda m: (lambda t: f"[{t}](#{at}{m[1]})" if m[1] in page.marks else t)(dict(fig="the figure", tbl="the table", sec="the section")[m[2]]), s)
        return outside_code(text, md)

    # documented names

    def label(self, page:Page, name:str)->str:
        "The label of a documented name, once for each."
        full = f"{self.lib}.{page.module}.{name}"
        if full not in self.labels:
            slug = "api-" + re.sub(r"[^a-z0-9]+", "-", full.lower())
            taken = set(self.labels.values())
            self.labels[full] = next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, 99))) if s not in taken)
        return self.labels[full]

    def table(self,
        d:Definition,   # a function, method or class
        page:Page,      # where it is documented
    )->str:
        "Parameters and result as a table; nothing where the signature says it all."
        back = d.returns if d.returns and d.returns.details else None
        if not d.params or not back and not any(p.details for p in d.params): return ""
        what = "Field" if d.head.startswith("class ") and "def __init__" not in d.source else "Parameter"
        defaults = any(p.default for p in d.params)
        rows = [[what, "Type", *["Default"]*defaults, "Details"]]
        rows += [[code(p.name), code(inline(p.kind)), *[code(inline(p.default))]*defaults, self.words(p, page)] for p in d.params]
        if back: rows.append(["*returns*", code(inline(back.kind)), *[""]*defaults, self.words(back, page)])
        out = ["::::{list-table}", ":class: api-table", ":header-rows: 1", ""]
        for row in rows: out += [("* - " if i == 0 else "  - ") + cell for i, cell in enumerate(row)]
        return "\n".join([*out, "::::"])

    def words(self, p:Param, page:Page)->str:
        "The comment of a parameter, with links."
        return self.linkify(quiet(inline(p.details)), page)

    def returns(self, d:Definition, page:Page)->str:
        "A sentence on what comes back, for a function without parameters."
        r = d.returns
        if not r or not r.details or d.params: return ""
        return "Returns " + (code(inline(r.kind)) + ": " if r.kind else "") + self.words(r, page) + "."*(r.details[-1] not in ".!?")

    def entry(self, d:Definition, page:Page, level:int, head:str|None=None)->str:
        "One documented name: how to call it, what it does, its parameters, its source."
        out = [f"({self.label(page, d.name)})="]
        if level: out += ["#"*level + f" `{d.name}`"]
        sig = ["::::{code-block} python", f":class: api-sig{'' if level else ' api-method'}", "", head or d.head, "::::"]
        out += ["", *sig, "", self.linkify(d.doc, page), "", self.table(d, page), self.returns(d, page), ""]
        for m in d.methods: out += [self.entry(m, page, 0)]
        if d.source: out += ["<details class=\"api-source\"><summary>Source</summary>", "", "`````python", d.source, "`````", "", "</details>", ""]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(out))

    def show_doc(self, cell:dict, page:Page, level:int)->str:
        "What stands on the page for a `show_doc` cell."
        name = SHOW_DOC.search(cell["source"])
        d = page.defs.get(name[1]) if name else None
        if d and not ("." in name[1] and f"{self.lib}.{page.module}.{name[1]}" in self.done):
            return self.entry(d, page, level)
        if d: return ""
        for o in cell.get("outputs", []):  # documented here, defined elsewhere: as nbdev shows it
            if md := o.get("data", {}).get("text/markdown"):
                md = re.sub(r"^---\n|^\[source\]\([^)]*\)\{[^}]*\}\n", "", md, flags=re.M)
                return self.markdown(re.sub(r"^#+ ", "#"*level + " ", md, count=1, flags=re.M), page)
        raise ValueError(f"nbs/{page.source}: `show_doc` shows nothing for {cell['source']!r}")

    # cells

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
                o["data"] = {k: v for k, v in o["data"].items() if k in SHOWN_MIMES}
                if "text/html" in o["data"]: o["data"]["text/html"] = align(o["data"]["text/html"])
                if not o["data"]: continue
            if "execution_count" in o: o["execution_count"] = None
            out.append(o)
        for o in streams.values(): o["text"] = "\n".join(l.rstrip("\r").split("\r")[-1] for l in o["text"].split("\n"))
        return [o for o in out if o["output_type"] != "stream" or o["text"].strip()]

    def code_cell(self, cell:dict, page:Page)->list:
        "A code cell with its directives turned into tags."
        has, src = directives(cell["source"]), body(cell["source"]).strip("\n")
        if has.get("include") == "false": return []
        outputs = self.outputs(cell.get("outputs", []), has)
        tags = [t for t in cell["metadata"].get("tags", []) if re.fullmatch(r"[\w-]+", t)]
        if has.get("echo") == "false" or not src.strip(): tags.append("remove-input")
        if has.get("output") == "false": tags.append("remove-output")
        if has.get("code-fold") == "true": tags.append("hide-input")
        if not src.strip() and not outputs: return []
        if {"remove-input", "remove-output"} <= set(tags): return []
        meta = {"tags": tags} if tags else {}
        if has.get("fig-cap"): meta["mystnb"] = {"figure": {"caption": self.markdown(has["fig-cap"], page), **({"name": page.slug + has["label"]} if "label" in has else {})}}
        if has.get("output") == "asis" and outputs:  # printed Markdown
            text = "\n\n".join(o.get("text") or o.get("data", {}).get("text/markdown", "") for o in outputs)
            first = [] if "remove-input" in tags else [dict(cell_type="code", metadata=meta, source=src, outputs=[], execution_count=None)]
            return first + [dict(cell_type="markdown", metadata={}, source=self.markdown(text, page))]
        return [dict(cell_type="code", metadata=meta, source=src, outputs=outputs, execution_count=None)]

    def head(self, page:Page, fm:dict)->list:
        "Title, question, and where the page comes from."
        where = [page.room] if page.source.name != "index.ipynb" else []
        if page.module: where.append(f"<code>{self.lib}.{page.module}</code>")
        if isinstance(page.run, dict):
            seconds = page.run["seconds"]
            where.append("run " + " ".join(filter(None, [(page.run["start"] or "")[:16].replace("T", " "), f"in {seconds:.0f} s" if seconds else ""])))
        where.append(f'<a class="api-notebook" href="{page.up}notebooks/{page.source.as_posix()}" download>nbs/{page.source.as_posix()}</a>')
        md = f"# {fm['title']}\n\n"
        if fm.get("description"): md += f":::{{container}} lead\n{fm['description']}\n:::\n\n"
        md += f'<p class="where">{" <span>·</span> ".join(where)}</p>'
        if page.run == "never": md += "\n\n:::{admonition} Not run here yet\n:class: note\n`make reproduce` runs this notebook; the next `make docs` then shows it with its outputs.\n:::"
        elif page.run and page.run["failed"]: md += "\n\n:::{admonition} This run failed\n:class: warning\nWhat follows is the notebook up to the cell that raised an error.\n:::"
        elif page.run and page.run["older"]: md += "\n\n:::{admonition} From an earlier version\n:class: note\nThe notebook has been changed since this run. `make reproduce` runs it again.\n:::"
        return [md]

    def convert_page(self, page:Page, nb:dict)->dict:
        "A whole notebook in MyST."
        cells, level, fm = [], 1, {}
        for cell in nb["cells"]:  # what can be referred to: headings with a label, figures that have been drawn
            page.marks |= {l for l in re.findall(r"\{#([\w-]+)", cell["source"]) if cell["cell_type"] == "markdown"}
            if cell.get("outputs") and "fig-cap" in (has := directives(cell["source"])): page.marks.add(has.get("label"))
        md = lambda s: dict(cell_type="markdown", metadata={}, source=s)
        for cell in nb["cells"]:
            src = cell["source"]
            if cell["cell_type"] == "raw":
                if not fm and (m := re.match(r"^---\s*\n(.*?)\n---\s*$", src.strip(), flags=re.S)): fm = yaml.safe_load(m[1]) or {}
                if not cells and fm: 
                    if "title" not in fm: raise ValueError(f"nbs/{page.source} has no title: its first Markdown cell must be `# Title` and `> question`")
                    page.title, page.question = str(fm["title"]), str(fm.get("description", ""))
                    cells += [md(s) for s in self.head(page, fm)]
            elif cell["cell_type"] == "markdown":
                if "AUTOGENERATED" in src or not src.strip(): continue
                outside_code(lambda s: heads.extend(len(h) for h in re.findall(r"^(#{1,6}) ", s, flags=re.M)) or s, src) if (heads := []) is not None else None
                level = heads[-1] if heads else level
                cells.append(md(self.markdown(src, page)))
            elif SHOW_DOC.search(src): cells.append(md(self.show_doc(cell, page, min(level + 1, 6))))
            else: cells += self.code_cell(cell, page)
        if not cells: raise ValueError(f"nbs/{page.source} has no title: its first Markdown cell must be `# Title` and `> question`")
        for i, c in enumerate(cells): c["id"] = f"cell-{i}"
        return dict(cells=cells, nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(display_name="Python 3", language="python", name="python3"),
            language_info=dict(name="python", pygments_lexer="ipython3")))

    def navigation(self)->str:
        "Hidden tables of contents that make the sidebar: a heading for each room, its pages by number."
        rooms = {}
        for p in self.pages[1:]: rooms.setdefault(p.room, []).append(p.doc)
        blocks = [f"```{{toctree}}\n:hidden:\n:caption: {room}\n\n" + "\n".join(f"/{d}" for d in docs) + "\n```" for room, docs in rooms.items()]
        if self.labels: blocks.append("```{toctree}\n:hidden:\n:caption: Reference\n\n/names\n```")
        return "\n\n".join(blocks)

    def index_of_names(self)->dict:
        "A page with every documented name and the first line of what it does."
        home = dict(source=Path("index.ipynb")); out = ["# All names", "", ":::{container} lead", "Which functions and classes are there, and where?", ":::", ""]
        here = Page(Path("names.ipynb")); here.module = None
        for p in self.pages:
            tops = [d for d in p.defs.values() if "." not in d.name and f"{self.lib}.{p.module}.{d.name}" in self.labels]
            if not tops: continue
            out += [f"## [`{self.lib}.{p.module}`](/{p.doc}.ipynb)", "", "::::{list-table}", ":class: names", ""]
            for d in sorted(tops, key=lambda d: d.name.lower()):
                first = inline(d.doc.split("\n\n")[0])
                out += [f"* - [`{d.name}`](#{self.label(p, d.name)})", f"  - {self.linkify(first, here)}"]
            out += ["::::", ""]
        return dict(cells=[dict(cell_type="markdown", metadata={}, source="\n".join(out), id="names")], nbformat=4, nbformat_minor=5, metadata={})

    def convert(self,
        proc:Path,  # what nbdev wrote
        to:Path,    # where the notebooks for Sphinx go
    ):
        "All pages, their pictures, and the navigation."
        nbs = {}
        for page in self.pages:
            path = proc/page.source
            if not path.is_file(): raise ValueError(f"nbdev left no page for nbs/{page.source}")
            nbs[page] = read_nb(path)
            for cell in nbs[page]["cells"]:  # all labels first: pages refer to each other
                m = SHOW_DOC.search(cell["source"]) if cell["cell_type"] == "code" else None
                if m and m[1] in page.defs:
                    self.label(page, m[1])
                    for method in page.defs[m[1]].methods: self.label(page, method.name)
        self.done = set(self.labels) - {f"{self.lib}.{p.module}.{n}" for p in self.pages for n in p.defs if "." not in n}
        for page, nb in nbs.items():
            new = self.convert_page(page, nb)
            if page is self.pages[0]: new["cells"].append(dict(cell_type="markdown", metadata={}, source=self.navigation(), id="navigation"))
            write_nb(new, to/f"{page.doc}.ipynb")
        if self.labels: write_nb(self.index_of_names(), to/"names.ipynb")
        for f in proc.rglob("*"):
            if f.suffix.lower() in (".png", ".svg", ".jpg", ".jpeg", ".gif"): (to/f.relative_to(proc)).parent.mkdir(parents=True, exist_ok=True); (to/f.relative_to(proc)).write_bytes(f.read_bytes())
