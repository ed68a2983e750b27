"""Run every check, and say in the end which failed.

    python tools/check.py all      style, the book, tests, every notebook
    python tools/check.py quick    all but what trains or starts many processes

Tests and notebooks run side by side in one pytest with pytest-xdist, a process for each
core and one more, since tests that wait and kernels that start leave gaps; then the
notebooks that train for long, each alone with all cores.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import course

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=8"]
NBVAL = ["--nbval", "-p", "no:hypothesispytest", "--tb=short"]


def notebooks(*trains: str) -> list[str]:
    """The notebooks that train so much: "no", "little" or "long"."""
    chosen = [c for c in course.chapters() if c.trains in trains]
    return [f"notebooks/{chapter.stem}.ipynb" for chapter in chosen]


def commands(quick: bool) -> dict[str, tuple[list[str], int]]:
    """What is run one after the other: the command, and how many processes it uses."""
    workers = min((os.cpu_count() or 1) + 1, 6)
    together = [*PYTEST, "--nbval", "-n", str(workers), "--dist", "loadfile"]
    ruff = [sys.executable, "-m", "ruff"]
    found = {
        "style": ([*ruff, "check", "."], 1),
        "format": ([*ruff, "format", "--check", "--quiet", "."], 1),
        "book": ([sys.executable, "tools/book.py"], 1),
    }
    if quick:
        light = ["tests", "-m", "not slow", *notebooks("no")]
        return found | {"tests and notebooks": ([*together, *light], workers)}
    light = ["tests", *notebooks("no", "little")]
    found["tests and notebooks"] = ([*together, *light], workers)
    for path in notebooks("long"):
        found[Path(path).stem] = ([*PYTEST, *NBVAL, path], 1)
    return found


def run(name: str, command: list[str], processes: int) -> bool:
    """Run one check; its output is shown as it comes. Whether it passed."""
    start = time.time()
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    threads = {"OMP_NUM_THREADS": "1"} if processes > 1 else {}
    passed = not subprocess.run(command, env=kept | threads).returncode
    verdict = "passed" if passed else "FAILED"
    print(f"--- {name}: {verdict} in {time.time() - start:.0f} s", flush=True)
    return passed


def main() -> int:
    os.chdir(ROOT)
    start, failed = time.time(), []
    for name, (command, processes) in commands(sys.argv[1:] == ["quick"]).items():
        if not run(name, command, processes):
            failed.append(name)
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"=== {(time.time() - start) / 60:.1f} minutes; {verdict}")
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
