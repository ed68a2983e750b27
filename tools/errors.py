"""Provoke every error in the tests' table, and write down what the commands report.

python tools/errors.py    book/error_messages.md, from tests/test_command_line.py
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book/error_messages.md"
HEAD = """# Every error message

Whatever is wrong with what a command is given, it reports in one line that begins with
`minillm:`, and ends with exit code 2. Here are {} errors: what is wrong, the command,
and what it reports. The line says how to fix it; where that needs more words,
[Troubleshooting](troubleshooting.md) has them. `tools/errors.py` provokes every one of
these errors and writes this page, and a test compares it with today's commands.
"""


def page() -> str:
    """The page, made by running every command of the table on its broken input."""
    import test_command_line as table

    parts, chain = [HEAD.format(len(table.BROKEN))], Path(tempfile.mkdtemp())
    table.make_chain(chain)
    for name, (damage, line, _) in table.BROKEN.items():
        folder = Path(tempfile.mkdtemp()) / "copy"
        shutil.copytree(chain, folder)
        if damage:
            damage(folder)
        reported = table.run(line, folder=folder)[2].strip().splitlines()[-1]
        if name in table.SECTIONS:
            parts.append(f"\n## {table.SECTIONS[name]}\n\n")
        parts.append(entry(name, line, reported))
        shutil.rmtree(folder.parent)
    shutil.rmtree(chain)
    return "".join(parts)


def entry(name: str, line: str | list[str], reported: str) -> str:
    """An item of the page's lists; no table, whose long lines would not wrap."""
    message = code(reported.removeprefix("minillm: "))
    return f"- **{name}**: {code(shown(line))}\\\n  {message}\n"


def shown(line: str | list[str], width: int = 60) -> str:
    """A command as it would be typed, its end left out if that is long."""
    import test_command_line as table

    text = line if isinstance(line, str) else " ".join(line)
    text = text.replace(table.TRAIN, "--preset shape.json").replace(table.FAST, "")
    return f"minillm {text.strip() if len(text) < width else text[:width] + ' ...'}"


def code(text: str) -> str:
    """As code in Markdown, whatever characters are in it."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def numberless(text: str) -> str:
    """Without numbers and digests, and what a network answered: those may differ."""
    return re.sub(r"[0-9a-f]{16}|\d+|within reach \([^)]*\)", "#", text)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.read_text().count('- **')} messages")
