"""Render the notebooks, as stored, into book/_build/html; warnings are errors."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    start = time.time()
    command = [
        Path(sys.executable).with_name("jupyter-book"), "build", ".",
        "--config", "book/_config.yml", "--toc", "book/_toc.yml",
        "--path-output", "book/", "-W", "--keep-going", "-n", "-q", *sys.argv[1:],
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT)
    if not done.returncode:
        print(f"book/_build/html/index.html, in {time.time() - start:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
