"""The first use of each glossary term in a chapter becomes a link to the glossary."""

import re

from docutils import nodes
from sphinx import addnodes

from .chapters import stem_of

PAGE = "book/glossary"
CLOSED = (  # no link is put inside these
    nodes.title,
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.comment,
    addnodes.desc_signature,
)


def terms_of(env) -> dict[str, str]:
    """Term in lower case -> anchor on the glossary page."""
    return {
        name.lower(): anchor
        for name, _, kind, page, anchor, _ in env.get_domain("std").get_objects()
        if kind == "term" and page == PAGE
    }


def open_texts(doctree):
    for text in list(doctree.findall(nodes.Text)):
        parent = text.parent
        while parent is not None and not isinstance(parent, CLOSED):
            if "cell" in parent.get("classes", []):
                break  # a code cell and what it printed
            parent = parent.parent
        if parent is None:
            yield text


def link_terms(app, doctree, docname):
    terms = terms_of(app.env)
    if not stem_of(docname) or not terms or app.builder.format != "html":
        return
    page = app.builder.get_relative_uri(docname, PAGE)
    names = "|".join(re.escape(name) for name in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])(?:{names})(?:e?s)?(?![\w-])", re.I)
    seen = set()
    for text in open_texts(doctree):
        parts, end = [], 0
        for found in pattern.finditer(text):
            word = found[0].lower()
            forms = (word, word.removesuffix("s"), word.removesuffix("es"))
            anchor = next(terms[form] for form in forms if form in terms)
            if anchor in seen:
                continue
            seen.add(anchor)
            parts.append(nodes.Text(text[end : found.start()]))
            options = dict(internal=True, refuri=f"{page}#{anchor}", classes=["term"])
            parts.append(nodes.reference("", found[0], **options))
            end = found.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def setup(app):
    app.connect("doctree-resolved", link_terms)
