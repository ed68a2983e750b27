"""Render the notebooks, as stored, into book/_build/html; warnings are errors.

The scripts and fonts that the pages load come from npm, at the versions pinned in
book/package-lock.json, and are served from the site itself. They are fetched once.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "book/node_modules"
VENDOR = ROOT / "book/_static/vendor"
CONFIG = ROOT / "book/_config.yml"
LOST = (
    "Without it the book is built, but its formulas and widgets are drawn by scripts "
    "from cdn.jsdelivr.net, which needs a network, and there are no hover previews."
)
# What is copied: folder below vendor/ -> files below node_modules/.
FILES = {
    "mathjax": ["mathjax/es5/tex-mml-chtml.js"],
    "mathjax/output/chtml/fonts": ["mathjax/es5/output/chtml/fonts/woff-v2"],
    "mathjax/input/tex": ["mathjax/es5/input/tex/extensions"],
    "mathjax/sre/mathmaps": [
        "mathjax/es5/sre/mathmaps/base.json",
        "mathjax/es5/sre/mathmaps/en.json",
    ],
    "mathjax/": ["mathjax/es5/a11y"],
    "widgets": [
        "requirejs/require.js",
        "@jupyter-widgets/html-manager/dist/embed-amd.js",
        "@jupyter-widgets/html-manager/dist/*.woff2",
    ],
    "tippy": ["tippy.js/dist/tippy.css"],
}
HOVER = ["@popperjs/core/dist/umd/popper.min.js", "tippy.js/dist/tippy.umd.min.js"]


def install() -> str:
    """Run `npm ci`; returns what went wrong, in one line."""
    if not (npm := shutil.which("npm")):
        return "npm is not installed (on Debian or Ubuntu: apt install npm)."
    print("fetching the scripts that the pages load, once (about 15 s)", flush=True)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=ROOT / "book", capture_output=True, text=True, errors="replace"
    )
    if not done.returncode:
        return ""
    errors = [line for line in done.stderr.splitlines() if "npm error" in line]
    return f"npm ci failed: {(errors or ['no message'])[0]}"


def fetch() -> None:
    """Fill book/_static/vendor, if book/package-lock.json asks for other files."""
    lock = (ROOT / "book/package-lock.json").read_text()
    wanted = hashlib.sha256((lock + Path(__file__).read_text()).encode()).hexdigest()
    stamp, installed = VENDOR / "made-from", MODULES / "made-from"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(VENDOR, ignore_errors=True)
    if not installed.exists() or installed.read_text() != lock:
        if problem := install():
            print(f"book: {problem} {LOST}", file=sys.stderr)
            return
        installed.write_text(lock)
    for folder, names in FILES.items():
        target = VENDOR / folder
        target.mkdir(parents=True, exist_ok=True)
        for path in [path for name in names for path in MODULES.glob(name)]:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, target / path.name)
    # One file in which `define` is hidden, so that require.js does not take it over.
    text = "\n".join((MODULES / name).read_text() for name in HOVER)
    hover = f"(function (define, exports, module) {{\n{text}\n}}).call(window);\n"
    (VENDOR / "tippy/tippy.js").write_text(hover)
    stamp.write_text(wanted)


def command(output: Path, config: Path, *options: str) -> list:
    return [
        Path(sys.executable).with_name("jupyter-book"), "build", ".",
        "--config", config, "--toc", "book/_toc.yml",
        "--path-output", output, "-W", "--keep-going", "-n", "-q", *options,
    ]  # fmt: skip


def build(output: Path, *options: str, config: Path = CONFIG) -> int:
    """Run jupyter-book into `output`/_build; pages of deleted sources go."""
    shutil.rmtree(output / "_build/html", ignore_errors=True)
    done = subprocess.run(
        command(output, config, *options), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    return done.returncode


def main() -> int:
    start = time.time()
    fetch()
    failed = build(ROOT / "book", *sys.argv[1:])
    if not failed:
        print(f"book/_build/html/index.html, in {time.time() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
