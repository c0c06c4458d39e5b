"""How long does every stage of the default run take, how much memory do all of its processes hold together at most, and how long does it take when nothing has changed?

    python benchmarks/reproduce.py [--again] [-- dvc repro ...]

What is up to date is not run: for the whole, start on a fresh clone or after `make clean-all`. Give the machine to it alone.
"""
import argparse, re, subprocess, sys, threading, time
import psutil

ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ask.add_argument("--again", action="store_true", help="only the run in which nothing has changed")
ask.add_argument("command", nargs="*", default=["dvc", "repro"])
args = ask.parse_args()


def held(process:psutil.Process)->int:
    "Bytes that a process and its children hold, shared pages divided among those that share them."
    total = 0
    for p in (process, *process.children(recursive=True)):
        try: total += p.memory_full_info().pss
        except psutil.Error: pass   # it has just ended
    return total


def run(command:list)->list:
    "Rows of (stage, seconds, most bytes held)."
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    rows, done = [["before the first stage", time.perf_counter(), 0]], threading.Event()
    def watch():
        while not done.wait(.5): rows[-1][2] = max(rows[-1][2], held(psutil.Process(child.pid)))
    watcher = threading.Thread(target=watch, daemon=True); watcher.start()
    for line in child.stdout:
        print(line, end="", file=sys.stderr, flush=True)
        if found := re.match(r"Running stage '([^']+)'", line): rows.append([found[1], time.perf_counter(), 0])
    done.set(); watcher.join()
    if child.wait(): sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    ends = [start for _, start, _ in rows[1:]] + [time.perf_counter()]
    return [(name, end - start, most) for (name, start, most), end in zip(rows, ends)]


if not args.again:
    rows = run(args.command)
    print(f"{'stage':24} {'seconds':>8} {'GiB at most':>12}")
    for name, seconds, most in rows: print(f"{name:24} {seconds:8.0f} {most/2**30:12.2f}")
    print(f"{'all':24} {sum(r[1] for r in rows):8.0f} {max(r[2] for r in rows)/2**30:12.2f}")
print(f"nothing changed: {sum(r[1] for r in run(args.command)):.1f} s")
