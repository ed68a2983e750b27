"""Write book/transcript.md: what the shipped chat model says, word for word.

The front page includes that file, and README has the same text. The words are typed
into `minillm chat`, with the likeliest token taken at every place, so that the same
model gives the same answers; `tests/test_book_pages.py` asks again and compares.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "transcript.md"
README = ROOT / "README.md"  # holds the same
MODEL = "checkpoints/littleworld-chat"
COMMAND = f"minillm chat --model {MODEL} --do_sample false"
SAID = [
    "Hello!",
    "What does the fox say?",
    "How much is 3 + 4?",
    "Where does the dragon live?",
    "/reset",
    "Tell me a story about a fox.",
]


def ask() -> list[tuple[str, str]]:
    """Type every line into one conversation; what was said, and what came back."""
    from minillm.app.main import main

    heard, before = io.StringIO(), sys.stdin
    sys.stdin = io.StringIO("\n".join(SAID) + "\n")
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(heard):
            if main(COMMAND.split()[1:]):
                raise RuntimeError(f"{COMMAND}: {heard.getvalue()}")
    finally:
        sys.stdin = before
    # in brackets, the program speaks for itself: which model, what was forgotten
    replies = iter(x for x in heard.getvalue().splitlines() if x and x[0] != "(")
    return [(said, "" if said[0] == "/" else next(replies)) for said in SAID]


def wrap(text: str, width: int = 72) -> str:
    """Break at spaces, so that no line of the page is wider than a phone's scroll."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += " " * bool(lines[-1]) + word
    return "\n".join(lines)


def page(turns: list[tuple[str, str]]) -> str:
    talk = "\n".join(f"> {said}\n{wrap(reply)}".strip() for said, reply in turns)
    return f"```text\n$ {COMMAND}\n{talk}\n```\n"


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    PAGE.write_text(said := page(ask()), encoding="utf-8")
    old = README.read_text(encoding="utf-8")
    before, rest = old.split("```text\n$ minillm chat", 1)
    README.write_text(before + said + rest.split("```\n", 1)[1], encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
