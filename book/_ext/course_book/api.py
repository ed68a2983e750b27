"""A page for each module of minillm, and one for littleworld, from their docstrings.

The pages are written to book/api/ before the sources are read; Sphinx's autodoc fills
them. Docstrings are plain text with `code` in single backticks, in the Markdown way.
"""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from .chapters import APPENDICES, ROOT, STEMS, module, number

FOLDER = ROOT / "book/api"
WORLD, WORLD_CHAPTER = "littleworld", "01_data"
WINGS = ("support", "app")  # hand-written: a page each
LONG = 60  # characters; the value of a longer constant is not shown


@cache
def chapter_of() -> dict[str, str]:
    """Module -> stem of the chapter that exports it."""
    return {module(stem): stem for stem in STEMS if module(stem)}


def is_constant(thing) -> bool:
    return not inspect.isclass(thing) and not inspect.isroutine(thing)


@cache
def names_of(name: str) -> tuple[str, ...]:
    """The public names of a module, constants with long values left out."""
    loaded = importlib.import_module(name)
    things = {name: getattr(loaded, name) for name in loaded.__all__}
    return tuple(
        name
        for name, thing in things.items()
        if not is_constant(thing) or name.isupper() and len(repr(thing)) <= LONG
    )


@cache
def known() -> dict[str, str]:
    """Name -> its full name, for names that occur once in all modules."""
    full = [f"minillm.{m}.{n}" for m in chapter_of() for n in names_of(f"minillm.{m}")]
    full += [f"{WORLD}.{name}" for name in names_of(WORLD)]
    short = [name.rpartition(".")[2] for name in full]
    return {s: f for s, f in zip(short, full, strict=True) if short.count(s) == 1}


def wing_modules(wing: str) -> list[str]:
    """The modules of a wing by their full names, in the order of the alphabet."""
    folder = ROOT / "minillm" / wing
    files = [p for p in sorted(folder.rglob("*.py")) if p.stem != "__init__"]
    return [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files]


def wing_page(wing: str) -> str:
    full = f"minillm.{wing}"
    text = heading(full) + first_sentence(full) + "\n\n"
    for name in wing_modules(wing):
        text += heading(name, "-")
        text += f".. automodule:: {name}\n   :members:\n\n"
    return text


def first_sentence(name: str) -> str:
    text = " ".join((importlib.import_module(name).__doc__ or "").split())
    return re.split(r"(?<=[.:]) ", text)[0].rstrip(":")


def to_rst(text: str, own: str = "") -> str:
    """One line of a docstring: code in backticks, names as links, the rest as is."""
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([\\*|_])", r"\\\1", part)
        elif (name := part.strip("`")) in known() and known()[name] != own:
            parts[i] = f":py:obj:`{name} <{known()[name]}>`"
        else:
            parts[i] = f"``{name}``"
    return "".join(parts)


def convert(app, what, name, obj, options, lines):
    """Docstring lines, in place: arguments, lists, indented examples, paragraphs."""
    made, arguments, before = [], False, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        argument = re.match(r" {4}(\w+): (.*)", line)
        if line.strip() in ("Args:", "Arguments:", "Attributes:"):
            arguments = True
            made.append("")
        elif arguments and argument:
            made.append(f":param {argument[1]}: {to_rst(argument[2])}")
        elif arguments and indent:
            made.append(f"   {to_rst(line.strip())}")
        elif line.startswith(">>>"):
            made.append(line)
        elif line.startswith("    ") and not arguments:
            made += [] if before.startswith("    ") else ["", "::", ""]
            made.append(line)
        else:
            arguments = arguments and not line.strip()
            made += [""] if before.startswith("    ") else []
            made.append(to_rst(line, name))
        before = line
    lines[:] = made


def write(path: Path, text: str) -> None:
    """Write only what changed, so that Sphinx reads only that again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def heading(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def module_page(name: str) -> str:
    full, stem = f"minillm.{name}", chapter_of()[name]
    loaded = importlib.import_module(full)
    constants = [n for n in names_of(full) if is_constant(getattr(loaded, n))]
    members = [n for n in names_of(full) if n not in constants]
    text = heading(full) + f"Built in :doc:`/notebooks/{stem}`.\n\n"
    text += f".. automodule:: {full}\n   :members: {', '.join(members)}\n\n"
    for constant in constants:
        value = repr(getattr(loaded, constant))
        text += f".. py:data:: {constant}\n   :value: {value}\n\n"
    return text


def world_page() -> str:
    loaded = importlib.import_module(WORLD)
    text = heading(WORLD) + f".. automodule:: {WORLD}\n   :no-members:\n\n"
    text += f"Met first in :doc:`/notebooks/{WORLD_CHAPTER}`.\n\n"
    for name in names_of(WORLD):
        kind = "class" if inspect.isclass(getattr(loaded, name)) else "function"
        text += f".. auto{kind}:: {WORLD}.{name}\n"
        text += "   :members:\n\n" if kind == "class" else "\n"
    return text


def index_page() -> str:
    text = heading("API") + (
        "What the chapters export, from its docstrings. The letters in shapes "
        "are those of the :doc:`notation page </book/notation>`.\n\n"
    )
    pages = {f"minillm.{name}": (name, stem) for name, stem in chapter_of().items()}
    for full, (page, stem) in {**pages, WORLD: (WORLD, WORLD_CHAPTER)}.items():
        about = to_rst(first_sentence(full)).rstrip(".")
        text += f":doc:`{full} <{page}>`\n   {about}. :doc:`/notebooks/{stem}`\n\n"
    for wing in WINGS:
        about = to_rst(first_sentence(f"minillm.{wing}")).rstrip(".")
        text += f":doc:`minillm.{wing} <{wing}>`\n   {about}.\n\n"
    return text


def write_pages(app):
    FOLDER.mkdir(exist_ok=True)
    pages = {"index": index_page(), WORLD: world_page()}
    pages |= {name: module_page(name) for name in chapter_of()}
    pages |= {wing: wing_page(wing) for wing in WINGS}
    for path in FOLDER.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        write(FOLDER / f"{name}.rst", text)


class ChapterLinks(SphinxPostTransform):
    """After each name on an API page: a link to the cell that builds it."""

    default_priority = 210
    formats = ("html",)

    def run(self, **kwargs):
        if not self.env.docname.startswith("book/api/"):
            return
        for signature in self.document.findall(addnodes.desc_signature):
            name, owner = signature.get("fullname", ""), signature.get("module") or ""
            stem = chapter_of().get(owner.removeprefix("minillm."))
            if not stem or "." in name or signature.parent["objtype"] == "data":
                continue
            kind = "appendix" if stem in APPENDICES else "chapter"
            page = self.app.builder.get_relative_uri(
                self.env.docname, f"notebooks/{stem}"
            )
            signature += nodes.reference(
                "",
                f"in {kind} {number(stem)}",
                internal=True,
                refuri=f"{page}#def-{name}",
                classes=["in-chapter", "no-preview"],
            )


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", convert)
    app.add_post_transform(ChapterLinks)
