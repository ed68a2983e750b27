"""Prepare the corpus if it is not there, then open JupyterLab on the welcome page."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port(first: int = 8888) -> int:
    """The first port that nobody listens on, from `first`."""
    for port in range(first, first + 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    sys.exit(
        f"make: ports {first} to {first + 49} are all in use; "
        "close a JupyterLab and try again."
    )


def settle() -> None:
    """Let this environment's JupyterLab not ask about news and updates."""
    notification = {"fetchNews": "false", "checkForUpdates": False}
    path = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"@jupyterlab/apputils-extension:notification": notification}
    path.write_text(json.dumps(settings), encoding="utf-8")


def main() -> int:
    os.chdir(ROOT)
    settle()
    if not Path("runs/data/about.json").exists():
        program = Path(sys.executable).with_name("minillm")
        subprocess.run([program, "data", "make"], check=True)
    port = free_port()
    if port != 8888:
        print(f"port 8888 is in use, so this JupyterLab is at {port}")
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    arguments = [
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={ROOT}",
        "--LabApp.default_url=/lab/tree/notebooks/00_welcome.ipynb",
        *root,
        *sys.argv[1:],
    ]
    print("opening JupyterLab; Ctrl-C here, twice, closes it", flush=True)
    return subprocess.run([sys.executable, "-m", "jupyterlab", *arguments]).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
