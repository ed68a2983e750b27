"""Run the checks, each with its time, and say at the end which failed.

python tools/check.py all      style, tests, every notebook, the book
python tools/check.py quick    the same without the notebooks that train
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
TRAINING = ["09_pretraining", "10_sft"]


def notebooks(quick: bool) -> list[str]:
    """Strict nbval over the glob; `quick` leaves out those that train for minutes."""
    left_out = [f"--ignore-glob=notebooks/{name}*" for name in TRAINING if quick]
    return [*PYTEST, "--nbval", "notebooks", "--durations=12", *left_out]


def checks(quick: bool) -> dict[str, list[str]]:
    ruff = [sys.executable, "-m", "ruff"]
    return {
        "style": [*ruff, "check", "."],
        "format": [*ruff, "format", "--check", "--quiet", "."],
        "tests": [
            *PYTEST,
            "tests",
            "--durations=8",
            *(["-m", "not slow"] if quick else []),
        ],
        "notebooks": notebooks(quick),
        "book": [sys.executable, "tools/book.py"],
    }


def main() -> int:
    os.chdir(ROOT)
    quick = sys.argv[1:] == ["quick"]
    times, failed = {}, []
    for name, command in checks(quick).items():
        print(f"\n=== {name}", flush=True)
        start = time.time()
        if subprocess.run(command).returncode:
            failed.append(name)
        times[name] = time.time() - start
    print(
        "\n=== " + ", ".join(f"{name} {spent:.0f} s" for name, spent in times.items())
    )
    print(
        f"=== {sum(times.values()) / 60:.1f} minutes; "
        + (f"FAILED: {', '.join(failed)}" if failed else "all passed")
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
