"""How long each notebook takes to read, for README's map of chapters.

python tools/minutes.py    200 words, or 15 lines of code, a minute; no solutions
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS, LINES = 200, 15  # a minute
FOLDED = {"hide-cell", "hide-input"}


def reading_minutes(stem: str) -> int:
    """Minutes to read a notebook, but for its set-up and what is folded: 5, 10, ..."""
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    minutes = 0.0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if text.startswith("# Set-up"):
            continue
        if cell["cell_type"] == "markdown":
            minutes += (
                len(re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", text))) / WORDS
            )
        elif not FOLDED & set(cell["metadata"].get("tags", [])):
            minutes += sum(1 for line in text.splitlines() if line.strip()) / LINES
    return max(round(minutes / 5) * 5, 5)


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        print(f"{path.stem:24} {reading_minutes(path.stem):3} minutes")
