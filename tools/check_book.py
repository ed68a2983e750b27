"""Look at every page of the built book in Chromium: `make test-book` builds it first.

python tools/check_book.py             all pages
python tools/check_book.py attention   those whose address holds this word
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]


def find_chromium() -> str:
    """Chromium on the PATH; installed with apt where that is possible; else ""."""
    found = next(filter(None, map(shutil.which, NAMES)), "")
    if found or not shutil.which("apt-get") or os.getuid():
        return found
    print("installing Chromium (about a minute)", flush=True)
    for command in (["update"], ["install", "-y", "chromium"]):
        subprocess.run(["apt-get", "-qq", *command], stdout=subprocess.DEVNULL)
    return next(filter(None, map(shutil.which, NAMES)), "")


def main() -> int:
    os.chdir(ROOT)
    if not (chromium := find_chromium()):
        print(
            "check_book: Chromium is needed (Debian and Ubuntu: apt install chromium)",
            file=sys.stderr,
        )
        return 2
    if not Path("book/node_modules/axe-core").exists():
        print("check_book: npm is needed, then: make book", file=sys.stderr)
        return 2
    words = sys.argv[1:]
    os.environ.update(
        MINILLM_CHROMIUM=chromium, MINILLM_PAGES=words[0] if words else ""
    )
    tests = ["tests/site/check_pages.py"] if words else ["tests/site"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    options = ["-o", "python_files=check_*.py", "-rs", "--durations=3"]
    return subprocess.run([*command, *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
