"""Make `.venv` and install the course into it, from pinned versions.

    python3 tools/setup.py          instant when nothing changed, safe to interrupt
    python3 tools/setup.py --pin    write what is installed now to constraints.txt

Standard library only, and no syntax newer than Python 3.6 up to the version check, so
that an old Python is told what is wrong instead of failing to read this file.
"""

import sys

VERSION = ".".join(str(part) for part in sys.version_info[:2])
if sys.version_info < (3, 11):  # noqa: UP036  (this is the check itself)
    print(
        f"minillm needs Python 3.11 or newer, and this is {VERSION}. "
        "Install a newer one and name it: make lab PYTHON=python3.11",
        file=sys.stderr,
    )
    sys.exit(2)

import hashlib  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
from pathlib import Path  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "minillm-installed"
WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
NEEDED_GB, CUDA_GB = 3, 10  # with the CPU build of torch; with CUDA's, and download


def fail(message: str) -> None:
    print(f"\nmake: {message}", file=sys.stderr)
    sys.exit(2)


def wanted() -> str:
    """What the environment is made from: its files, this Python and this place."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def clean_environment() -> dict:
    """The environment without another one's traces (an active venv or conda)."""
    hidden = {
        "VIRTUAL_ENV",
        "PYTHONHOME",
        "PYTHONPATH",
        "PIP_TARGET",
        "PIP_USER",
        "PIP_REQUIRE_VIRTUALENV",
    }
    return {key: value for key, value in os.environ.items() if key not in hidden}


def make_venv() -> None:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        fail(
            "this Python has no venv module. "
            f"On Debian or Ubuntu: apt install python{VERSION}-venv"
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    room = f"{free:.1f} GB free on this disk; the environment needs {NEEDED_GB} GB"
    if free < NEEDED_GB and not VENV.exists():
        fail(f"{room}. Free some, then run the same command again.")
    if free < CUDA_GB and sys.platform == "linux":
        print(f"{room}, or up to {CUDA_GB} GB if PyTorch comes with CUDA", flush=True)
    print("[1/3] making the environment in .venv", flush=True)
    # --clear: a half-made or foreign environment is replaced, not repaired.
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], env=clean_environment()
    )
    if done.returncode:
        fail("the environment could not be made; the lines above say why.")


def install() -> None:
    """Run pip, which shows its own progress."""
    print("[2/3] installing (1-2 minutes, and the download)", flush=True)
    command = [
        str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check",
        "--no-input", "-c", "constraints.txt", "-e", ".[all]",
    ]  # fmt: skip
    if subprocess.run(command, cwd=ROOT, env=clean_environment()).returncode:
        fail(
            "pip could not install the course; its last lines are above. "
            "Run the same command again to resume."
        )


def pin() -> None:
    command = [str(PYTHON), "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [
        re.sub(r"\+\w+$", "", line) for line in frozen.splitlines() if "==" in line
    ]
    head = "# Every version the course is checked with; `make constraints` writes it.\n"
    (ROOT / "constraints.txt").write_text(
        head + "\n".join(lines) + "\n", encoding="utf-8"
    )
    print(f"constraints.txt pins {len(lines)} packages")


def main() -> int:
    os.chdir(ROOT)
    if "--pin" in sys.argv:
        pin()
        return 0
    if STAMP.exists() and STAMP.read_text() == wanted() and PYTHON.exists():
        return 0
    if not os.access(ROOT, os.W_OK):
        fail(f"this folder can't be written: {ROOT}. Copy the course to one that can.")
    # pip resumes where it was; only an environment that does not run is replaced.
    works = (
        PYTHON.exists()
        and not subprocess.run(
            [str(PYTHON), "-m", "pip", "--version"], capture_output=True
        ).returncode
    )
    if not works:
        make_venv()
    install()
    print("[3/3] ready", flush=True)
    STAMP.write_text(wanted())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        sys.exit(130)
