"""Small faults of the theme's and Sphinx's pages, found by axe-core, put right."""

import re
from pathlib import Path

# (what, by what): a button's label must hold the words that are seen in it, and a
# button without words needs a label; a role that is no longer used is replaced.
LABELS = [
    (r'(<button class="btn search-button-field[^>]*?) aria-label="[^"]*"', r"\1"),
    (r'(<i class="theme-switch[^>]*?) +title="[^"]*"', r'\1 aria-hidden="true"'),
    (r"(<td>(?:<p>)?\d+) (min|s|h)\b", r"\1&nbsp;\2"),  # a number keeps its unit
    (r'role="doc-biblioentry"', 'role="listitem"'),
    (
        r'<summary>(?=<span class="toctree-toggle")',
        '<summary aria-label="pages below">',
    ),
]
SIGNATURE = re.compile(r'<dt class="sig.*?</dt>', re.S)


def in_spans(found) -> str:
    """A signature of several lines is no list of definitions."""
    text = re.sub(r"<(dl|dd)>", r'<span class="sig-\1">', found[0])
    return re.sub(r"</(dl|dd)>", "</span>", text)


def mend_page(text: str) -> str:
    for pattern, by in LABELS:
        text = re.sub(pattern, by, text)
    return SIGNATURE.sub(in_spans, text)


def mend(app, exception):
    if exception or app.builder.format != "html" or app.builder.name == "epub":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts:
            text = path.read_text(encoding="utf-8")
            path.write_text(mend_page(text), encoding="utf-8")


def setup(app):
    app.connect("build-finished", mend)
