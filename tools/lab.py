"""Prepare the corpus if it is not there, then open JupyterLab on the welcome page."""

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


def main() -> int:
    os.chdir(ROOT)
    if not Path("runs/data/about.json").exists():
        subprocess.run(
            [sys.executable, "-m", "minillm.command_line", "data", "make"], check=True
        )
    port = free_port()
    if port != 8888:
        print(f"port 8888 is in use, so this JupyterLab is at {port}")
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    arguments = [
        f"--ServerApp.port={port}",
        *root,
        *sys.argv[1:],
        "notebooks/00_welcome.ipynb",
    ]
    print("opening JupyterLab; Ctrl-C here, twice, closes it", flush=True)
    return subprocess.run([sys.executable, "-m", "jupyterlab", *arguments]).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(0)
