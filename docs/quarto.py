"""From the syntax of nbdev and Quarto to that of MyST: text in, text out.

The notebooks stay in the syntax that `nbdev_docs` reads. What is translated here: `#|` directives, callouts and other fenced divs, labels and
references, and the HTML of data frames."""
import re

LEAD = re.compile(r"^(?:[ \t]*#\|[^\n]*(?:\n|$))+")  # directives at the top of a cell
FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
DIV_OPEN, DIV_CLOSE = re.compile(r"^:{3,}\s*(\{[^}]*\}|[\w-]+)\s*$"), re.compile(r"^:{3,}\s*$")
CALLOUTS = "note", "tip", "warning", "important", "caution"
NUMBER = re.compile(r"\s*(?:[-+]?[\d.,]+(?:e[-+]?\d+)?\s*%?|[-+]?inf|NaN|None|NaT|&lt;NA&gt;|-|)\s*")
SPOKEN = dict(fig="the figure", tbl="the table", sec="the section")

def directives(src:str)->dict:
    "The `#|` lines at the top of a cell: `#| export` becomes {'export': ''}, `#| echo: false` becomes {'echo': 'false'}."
    lead = LEAD.match(src)
    pairs = (re.match(r"\s*#\|\s*([\w-]+)\s*:?\s*(.*)$", l) for l in (lead[0].splitlines() if lead else []))
    return {m[1]: m[2].strip().strip("\"'") for m in pairs if m}

def body(src:str)->str:
    "A cell's source without directives."
    return LEAD.sub("", src).strip("\n")

def outside_code(
    change,   # what is done to each run of lines
    md:str,   # Markdown
)->str:
    "Markdown with its text changed and its code fences left alone."
    out, run, fence = [], [], None
    def flush():
        if run: out.append(change("\n".join(run))); run.clear()
    for line in md.split("\n"):
        m = FENCE.match(line)
        if fence is None and not m: run.append(line); continue
        if fence is None: flush(); fence = m[1]
        elif m and m[1].startswith(fence) and not line.strip(" `~"): fence = None
        out.append(line)
    flush()
    return "\n".join(out)

def headings(md:str)->list[int]:
    "Levels of the headings of a cell."
    found = []
    outside_code(lambda s: found.extend(len(h) for h in re.findall(r"^(#{1,6}) ", s, flags=re.M)) or s, md)
    return found

def quiet(s:str)->str:
    "Plain words made safe for Markdown; what stands in backticks stays code."
    return re.sub(r"`[^`]*`|[\\*_\[\]<>$|~#{}]", lambda m: m[0] if len(m[0]) > 1 else "\\" + m[0], s)

def code(s:str)->str:
    "Inline code, whatever is in it."
    return "" if not s else f"`` {s} ``" if "`" in s else f"`{s}`"

def inline(s:str)->str:
    "Text on one line."
    return re.sub(r"\s*\n\s*", " ", s).strip()

def callout(
    attrs:str,         # what stands behind the colons: `{.callout-tip title="Why"}`
    inside:list[str],  # the lines between
    depth:int,         # how many divs it lies in
)->list[str]:          # lines
    "One fenced div as a directive: a callout becomes an admonition, anything else a container."
    classes = re.findall(r"\.([\w-]+)", attrs) if "{" in attrs else [attrs]
    kind = next((c.removeprefix("callout-") for c in classes if c.startswith("callout-")), None)
    while inside and not inside[0].strip(): inside = inside[1:]
    bar = ":" * max(8 - depth, 3)  # an outer fence must be longer than those in it
    if kind is None: return [f"{bar}{{container}} {' '.join(classes)}", "", *inside, bar]
    if kind not in CALLOUTS: raise ValueError(f"`.callout-{kind}` is none of {', '.join(CALLOUTS)}")
    title = re.search(r"title=\"([^\"]*)\"", attrs)
    if not title and inside and (title := re.match(r"#{1,6}\s+(.*)", inside[0])): inside = inside[1:]
    folds = [":collapsible: closed"] * ("collapse" in attrs)
    return [f"{bar}{{admonition}} {title[1] if title else kind.capitalize()}", f":class: {kind}", *folds, "", *inside, bar]

def divs(md:str)->str:
    "Markdown with its fenced divs turned into directives. Raises `ValueError` if one does not open and close in the same cell."
    out, opened, fence = [], [], None
    for line in md.split("\n"):
        if m := FENCE.match(line): fence = m[1][:3] if fence is None else None if m[1].startswith(fence) else fence
        if fence is None and (m := DIV_OPEN.match(line)): opened.append((m[1], len(out)))
        elif fence is None and DIV_CLOSE.match(line):
            if not opened: raise ValueError("a `:::` closes nothing (a callout must open and close in one cell)")
            attrs, start = opened.pop()
            out[start:] = callout(attrs, out[start:], len(opened))
        else: out.append(line)
    if opened: raise ValueError(f"`::: {opened[-1][0]}` is not closed in its cell")
    return "\n".join(out)

def labels(
    s:str,        # Markdown without code fences
    prefix:str,   # makes the labels of this page differ from those of another
    known:set,    # labels that can be referred to
)->str:
    "Quarto's labels `{#sec-x}`, `{#eq-x}` and references `@fig-x` in MyST."
    def reference(m):
        word = SPOKEN[m[2]]
        return f"[{word}](#{prefix}{m[1]})" if m[1] in known else word
    s = re.sub(r"^(#{1,6} .*?)\s*\{#([\w-]+)[^}]*\}\s*$", rf"({prefix}\2)=\n\1", s, flags=re.M)
    s = re.sub(r"^(#{1,6} .*?)\s*\{[.-][^}]*\}\s*$", r"\1", s, flags=re.M)  # classes of a heading
    s = re.sub(r"\$\$\s*\{#(eq-[\w-]+)\}", rf"$$ ({prefix}\1)", s)
    s = re.sub(r"(?<![\w`\[])@(eq-[\w-]*\w)", rf"{{eq}}`{prefix}\1`", s)
    return re.sub(r"(?<![\w`\[])@((fig|tbl|sec)-[\w-]*\w)", reference, s)

def columns_of_words(html:str)->str:
    "A data frame with its words on the left; numbers stay on the right, digit under digit."
    head, _, rest = html.partition("<tbody>")
    row = re.compile(r"<tr[^>]*>.*?</tr>", flags=re.S)
    rows = [re.findall(r"<td>(.*?)</td>", r, flags=re.S) for r in row.findall(rest)]
    if 'class="dataframe"' not in html or "span=" in html or not rows: return html
    words = {i for r in rows for i, cell in enumerate(r) if not NUMBER.fullmatch(cell)}
    n_index = row.search(rest)[0].count("<th")
    def mark(tag, first):
        def one(m):
            at = iter(range(first, 10_000))
            return re.sub(f"<{tag}>", lambda t: f'<{tag} class="words">' if next(at) in words else t[0], m[0])
        return one
    return row.sub(mark("th", -n_index), head) + "<tbody>" + row.sub(mark("td", 0), rest)
