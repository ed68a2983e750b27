"""What the command prints: to the user at once, and warnings in one line."""

import os
import sys


def say(text: str = "", end: str = "\n") -> None:
    """Print without delay, in the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, end=end, flush=True)


def show_warning(message: Warning, *details: object) -> None:
    """A warning in one line, without the place in the code that it comes from."""
    print(f"\nminillm: {message}", file=sys.stderr)
