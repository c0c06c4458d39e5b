"""What several tests need: the project, and a copy of it to run things in."""
import os, shutil, subprocess
from pathlib import Path
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; `pytest -m 'not slow'` leaves it out")


def tracked_files(root=ROOT):
    "Files of the project as git sees them, new ones included; without git, all that are not generated."
    done = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if done.returncode == 0: names = [n for n in done.stdout.split("\0") if n]
    else:
        generated = {".venv", "corpora", "data", "__pycache__", ".ipynb_checkpoints", "cache", "_docs", "_proc"}
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and not generated & set(p.relative_to(root).parts)]
    return [Path(n) for n in sorted(names) if (root/n).is_file()]


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false", *words], cwd=folder, check=True, capture_output=True)


def clone(to):
    "The project as it stands, uncommitted changes included, as a git repository of its own."
    for name in tracked_files():
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, to/name)
    git(to, "init", "-q", "-b", "main"); git(to, "add", "-A"); git(to, "commit", "-qm", "as it stands")
    return to


@pytest.fixture(scope="session")
def root(): return ROOT
