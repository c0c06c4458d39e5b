"""What the source of a definition says about it: parameters, types, defaults, and the comment beside each (nbdev's docments)."""
import ast, io, tokenize
from dataclasses import dataclass, field

@dataclass
class Param:
    name:str        # as written, with the stars of *args and **kwargs
    kind:str        # type hint, "" where there is none
    default:str     # source of the default, "" where there is none
    details:str     # the comment beside it

@dataclass
class Definition:
    name:str                    # `frame_at` or `Clip.frame_at`
    head:str                    # one line that shows how to call it
    doc:str                     # docstring
    params:list[Param]          # in order, without self
    returns:Param|None          # type and comment of what comes back
    source:str                  # the source to show
    methods:list = field(default_factory=list)  # public ones that say something about themselves
    is_data:bool = False        # its parameters are the fields of a dataclass

def comments(
    src:str, # Python source
)->dict:     # line number to (column, text, whether it stands alone)
    "Every comment of a source."
    out, lines = {}, src.splitlines()
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        if t.type == tokenize.COMMENT: out[t.start[0]] = t.start[1], t.string.lstrip("#").strip(), not lines[t.start[0]-1][:t.start[1]].strip()
    return out

def signature_end(
    src:str,  # source that holds the definition
    line:int, # line of its `def`
)->int:       # line of the colon that ends its signature
    "Where the signature of a function ends."
    depth, inside = 0, False
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        if t.start[0] < line: continue
        inside = inside or t.string == "def"
        if t.type != tokenize.OP or not inside: continue
        depth += (t.string in "([{") - (t.string in ")]}")
        if t.string == ":" and depth == 0: return t.start[0]
    return line

def beside(
    notes:dict,   # comments of the source
    first:int,    # first line of the parameter
    last:int,     # its last line
    before:int,   # last line of whatever stands in front of it
)->str:
    "The comment of a parameter: at the end of its line, or on lines of its own above it, or going on below it in the same column."
    above = [notes[l] for l in range(before + 1, first) if l in notes and notes[l][2]]
    if before in notes: above = [n for n in above if n[0] != notes[before][0]]  # those go on from the parameter above
    text = [n[1] for n in above]
    if last in notes and not notes[last][2]:
        column, words, _ = notes[last]; text.append(words)
        while (last := last + 1) in notes and notes[last][2] and notes[last][0] == column: text.append(notes[last][1])
    return " ".join(text)

def parameters(
    src:str,                # source of the cell
    node:ast.FunctionDef,   # a function in it
    method:bool=False,      # drop the first parameter
)->tuple[list[Param], Param|None]:
    "Parameters and return value of a function, with their comments."
    notes, text = comments(src), lambda n: ast.get_source_segment(src, n) if n else ""
    kind = lambda n: "" if n is None else n.value if isinstance(n, ast.Constant) and isinstance(n.value, str) else ast.unparse(n)  # with room for a line break
    a, end = node.args, signature_end(src, node.lineno)
    plain, n_default = a.posonlyargs + a.args, len(a.defaults)
    rows = [(p, "", d) for p, d in zip(plain, [None]*(len(plain) - n_default) + a.defaults)]
    rows += [(a.vararg, "*", None)]*bool(a.vararg) + [(p, "", d) for p, d in zip(a.kwonlyargs, a.kw_defaults)] + [(a.kwarg, "**", None)]*bool(a.kwarg)
    lasts = [(d or p.annotation or p).end_lineno for p, _, d in rows]
    out, before = [], node.lineno
    for i, (p, stars, default) in enumerate(rows):
        ends_line = i + 1 == len(rows) or rows[i+1][0].lineno > lasts[i]
        own = not (lasts[i] == end and node.returns)  # else the comment there is that of the result
        details = "" if not own else beside(notes, p.lineno, lasts[i], before) if ends_line else notes.get(lasts[i], (0, ""))[1]  # `x, y, # centre` speaks of both
        out.append(Param(stars + p.arg, kind(p.annotation), text(default), details)); before = lasts[i]
    note = notes[end][1] if end in notes and not notes[end][2] and node.returns and node.body[0].lineno != end else ""
    back = Param("", kind(node.returns), "", note) if node.returns and kind(node.returns) != "None" or note else None
    return out[1:] if method and not any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list) else out, back

def call(
    name:str,           # what is called
    params:list[Param], # with what
    returns:Param|None, # what comes back
)->str:
    "How to call it, on one line where it fits: names and defaults; the types stand in the table, or here where there is none."
    bare = not any(p.details for p in params)
    words = [p.name + (f": {p.kind}" if bare and p.kind else "") + (f"={p.default}" if p.default else "") for p in params]
    back = f" -> {returns.kind}" if returns and returns.kind else ""
    line = f"{name}({', '.join(words)}){back}"
    if len(line) <= 84: return line
    rows, row = [], ""
    for w in words:
        if row and len(row) + len(w) > 76: rows.append(row); row = ""
        row += w + ", "
    return f"{name}(\n    " + "\n    ".join(r.rstrip() for r in [*rows, row.rstrip(", ")]) + f"\n){back}"

def definitions(
    src:str,  # source of an exported cell, without directives
)->dict:      # name to `Definition`; methods under `Class.method` too
    "The functions and classes that a cell defines."
    found, tree = {}, ast.parse(src)
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    nodes = [n for n in tree.body if isinstance(n, kinds)]
    whole = len(nodes) == 1
    for node in nodes:
        top = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        text = src.strip("\n") if whole else "\n".join(src.splitlines()[top-1:node.end_lineno])
        found[node.name] = d = describe_class(src, node, text) if isinstance(node, ast.ClassDef) else describe_function(src, node, text)
        found.update({m.name: m for m in d.methods})
    return found

def describe_function(src:str, node:ast.FunctionDef, text:str, owner:str="")->Definition:
    "A function or a method."
    is_property = any(getattr(d, "id", getattr(d, "attr", "")) in ("property", "cached_property") for d in node.decorator_list)
    params, back = parameters(src, node, method=bool(owner))
    head = node.name + (f" -> {back.kind}" if back and back.kind else "") if is_property else call(node.name, params, back)
    return Definition(f"{owner}.{node.name}" if owner else node.name, ("." if owner else "") + head, ast.get_docstring(node) or "", params, back, text)

def describe_class(src:str, node:ast.ClassDef, text:str)->Definition:
    "A class: how it is made (its `__init__`, or its fields if it is a dataclass), and the methods that say something about themselves."
    functions = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    init = next((n for n in functions if n.name == "__init__"), None)
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith("_")]
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    if init: params, _ = parameters(src, init, method=True)
    else:
        notes, params, before = comments(src), [], node.body[0].end_lineno if not isinstance(node.body[0], ast.AnnAssign) else node.lineno
        for n in fields:
            default = ast.get_source_segment(src, n.value) if n.value else ""
            params.append(Param(n.target.id, ast.unparse(n.annotation), default, beside(notes, n.lineno, n.end_lineno, before))); before = n.end_lineno
    if init or fields: head = call(node.name, params, None)
    else: head = node.name + (f"({bases})" if bases else "")
    methods = [describe_function(src, n, "", node.name) for n in functions if not n.name.startswith("_")]
    methods = [m for m in methods if m.doc or any(p.details for p in m.params) or m.returns and m.returns.details]
    doc = ast.get_docstring(node) or (ast.get_docstring(init) if init else "") or ""
    return Definition(node.name, "class " + head, doc, params, None, text, methods, is_data=not init)
