"""Run the checks, each with its time, and say at the end which failed.

python tools/check.py all      style, tests, every notebook, the book
python tools/check.py quick    all but the notebooks that train, two checks at a time
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
TRAINING = ["09_pretraining", "10_sft"]


def checks(quick: bool) -> dict[str, list[str]]:
    """Name -> command. The notebooks are a glob, compared strictly by nbval."""
    ruff = [sys.executable, "-m", "ruff"]
    left_out = [f"--ignore-glob=notebooks/{name}*" for name in TRAINING if quick]
    return {
        "notebooks": [*PYTEST, "--nbval", "notebooks", "--durations=8", *left_out],
        "tests": [*PYTEST, "tests", "--durations=8"],
        "style": [*ruff, "check", "."],
        "format": [*ruff, "format", "--check", "--quiet", "."],
        "book": [sys.executable, "tools/book.py"],
    }


def run(name: str, command: list[str], together: bool) -> tuple[str, bool, float]:
    """Run one check, its lines shown as they come, or at its end if it has company."""
    start, options = time.time(), {}
    if together:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    else:
        print(f"\n=== {name}", flush=True)
    done = subprocess.run(command, **options)
    if together:
        print(f"\n=== {name}\n{done.stdout}", flush=True)
    return name, done.returncode == 0, time.time() - start


def main() -> int:
    os.chdir(ROOT)
    quick, start = sys.argv[1:] == ["quick"], time.time()
    if quick:
        print("under 4 minutes; what each check says is shown when it ends", flush=True)
    with ThreadPoolExecutor(2 if quick else 1) as pool:
        jobs = [pool.submit(run, *item, quick) for item in checks(quick).items()]
        found = [job.result() for job in jobs]
    failed = [name for name, well, _ in found if not well]
    print("\n=== " + ", ".join(f"{name} {spent:.0f} s" for name, _, spent in found))
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"=== {(time.time() - start) / 60:.1f} minutes; {verdict}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
