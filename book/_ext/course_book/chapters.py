"""Chapters: their numbers, and the links under their titles."""

import json
import re
import sys
from html import escape
from pathlib import Path
from string import ascii_uppercase

from sphinx.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))
import course  # noqa: E402

CHAPTERS = {chapter.stem: chapter for chapter in course.chapters(ROOT)}
STEMS = list(CHAPTERS)
MAP = "course_map.svg"
APPENDICES = [stem for stem in STEMS if stem.startswith("appendix_")]


def stem_of(docname: str) -> str:
    """The stem of a chapter's page, "" for another page."""
    folder, _, stem = docname.rpartition("/")
    return stem if folder == "notebooks" else ""


def number(stem: str) -> str:
    """03_attention -> 3; the appendices are A, B, C."""
    if stem in APPENDICES:
        return ascii_uppercase[APPENDICES.index(stem)]
    found = re.match(r"\d+", stem)
    return str(int(found[0])) if found else ""


def module(stem: str) -> str:
    """The module that a chapter exports, "" for none."""
    text = (ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8")
    found = re.search(r"#\| *default_exp +(\w+)", text)
    return found[1] if found else ""


def add_number(app, docname, source):
    stem = stem_of(docname)
    if not stem or not number(stem):
        return
    source[0] = re.sub(rf"{MAP}#\w+", MAP, source[0])  # a file's name, for Sphinx
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search(r"^# ", text, re.M):
            title = f"# {number(stem)} "
            cell["source"] = re.sub(r"^# ", title, text, count=1, flags=re.M)
            break
    source[0] = json.dumps(notebook)


def repository(config) -> tuple[str, str]:
    """owner/name on GitHub and the branch, from the setting in _config.yml."""
    options = config.html_theme_options
    url = (options.get("repository_url") or "").rstrip("/").removesuffix(".git")
    if not url:
        return "", ""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", url)
    if not found:
        raise ConfigError(
            f"repository url {url!r} in book/_config.yml must be empty or "
            "https://github.com/OWNER/NAME"
        )
    return found[1], options.get("repository_branch") or "main"


def links(app, docname) -> list[tuple[str, str, str]]:
    """(text, address, attributes) of the links under a page's title."""
    stem, made = stem_of(docname), []
    name, branch = repository(app.config)
    if stem:
        if owned := module(stem):
            page = app.builder.get_relative_uri(docname, f"book/api/{owned}")
            made.append((f"API: minillm.{owned}", page, ""))
        made.append(("Download notebook", f"../_sources/{docname}.ipynb", " download"))
        if name:
            colab = "https://colab.research.google.com/github"
            address = f"{colab}/{name}/blob/{branch}/{docname}.ipynb"
            made.append(("Open in Colab", address, ""))
    if name and not docname.startswith("book/api/"):
        source = f"notebooks/text/{stem}" if stem else docname  # twins are edited
        address = f"https://github.com/{name}/edit/{branch}/{source}.md"
        made.append(("Suggest an edit", address, ""))
    return made


def add_links(app, pagename, templatename, context, doctree):
    if app.builder.format != "html" or app.builder.name == "epub" or not doctree:
        return
    if stem := stem_of(pagename):  # the box of this chapter is lit
        lit = f"{MAP}#{CHAPTERS[stem].name}"
        context["body"] = context["body"].replace(f'{MAP}"', f'{lit}"')
    items = "".join(
        f'<li><a class="no-preview" href="{escape(address)}"{more}>{text}</a></li>'
        for text, address, more in links(app, pagename)
    )
    if items:
        bar = f'<nav class="page-links" aria-label="This page"><ul>{items}</ul></nav>'
        context["body"] = context["body"].replace("</h1>", f"</h1>\n{bar}", 1)


def check_repository(app, config):
    repository(config)


def setup(app):
    app.connect("config-inited", check_repository)
    app.connect("source-read", add_number)
    app.connect("html-page-context", add_links)
