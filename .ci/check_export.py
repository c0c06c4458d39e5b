"Whether `nbdev_clean` and `nbdev_export` would change anything: they are run on a copy, so a tree with changes of its own, or without git, can be checked."
import filecmp, os, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
junk = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.part*", "*.tmp")

def files(folder): return {p.relative_to(folder) for d in ("nbs", "cad_nb") for p in (folder/d).rglob("*") if p.is_file() and p.suffix in (".ipynb", ".py") and ".ipynb_checkpoints" not in p.parts}

with tempfile.TemporaryDirectory() as d:
    copy = Path(d)/root.name
    for name in ("nbs", "cad_nb"): shutil.copytree(root/name, copy/name, ignore=junk)
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(root/name, copy/name)
    for p in (copy/"cad_nb").rglob("*.py"):  # what no notebook exports any more would stay otherwise
        if p.name != "__init__.py": p.unlink()
    for tool in ("nbdev_clean", "nbdev_export"):
        done = subprocess.run([Path(sys.executable).parent/tool], cwd=copy, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(copy)))
        if done.returncode: sys.exit(f"{tool} failed:\n{done.stdout}{done.stderr}")
    here, there = files(root), files(copy)
    wrong = [f"{p}: no notebook exports it" for p in here - there] + [f"{p}: missing" for p in there - here]
    wrong += [f"{p}: not what {'nbdev_clean' if p.suffix == '.ipynb' else 'nbdev_export'} makes" for p in here & there if not filecmp.cmp(root/p, copy/p, shallow=False)]
    if wrong: sys.exit("\n".join(sorted(wrong)) + "\nRun `nbdev_clean` and `nbdev_export`, and commit what they change.")
    print(f"{len(here)} files are as they should be")
