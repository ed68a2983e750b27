"""What the outputs of a notebook depend on, as a hash: code, not prose.

Its own cells, and of the project's modules the definitions that its imports reach: a
name, and all names that its code uses, through as many modules as that takes. Comments
and docstrings do not count; those of commands and settings do if it shows `--help`.
Checkpoints and stored measurements that it reads count byte by byte.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"minillm": ROOT / "minillm", "littleworld": ROOT / "data/littleworld"}
SHOWS_TEXT = re.compile(r"--help|getsource|__doc__|\bhelp\(")
ALL = "*"  # in place of a name: everything in the module
Name = tuple[str, str]  # a module, and a name in it


class Plain(ast.NodeTransformer):
    """Takes away docstrings."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:] or [ast.Pass()]
        return node


def plain(code: str) -> str:
    """Code without comments, docstrings, and the way it is laid out."""
    return ast.unparse(Plain().visit(ast.parse(code)))


@cache
def path_of(module: str) -> Path | None:
    """The file of a module of the project; None for all others."""
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(*rest)
    files = path.with_suffix(".py"), path / "__init__.py"
    return next((file for file in files if file.is_file()), None)


def imported(tree: ast.AST, module: str = "") -> Iterator[tuple[str, Name]]:
    """(name here, what it is there) for everything imported from the project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # from .engine import read
                source = f"{module.split('.')[0]}.{source}".rstrip(".")
            for alias in node.names if path_of(source) else ():
                inner = f"{source}.{alias.name}"
                target = (inner, ALL) if path_of(inner) else (source, alias.name)
                yield alias.asname or alias.name, target
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if path_of(alias.name):
                    yield alias.asname or alias.name.split(".")[0], (alias.name, ALL)


def named(tree: ast.AST) -> Iterator[Name]:
    """Modules that code names in a text, such as "minillm.app.training:RunConfig"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"([a-z_]+(?:\.\w+)*)\.?(?::\w+)?", node.value)
            if found and path_of(found[1]) and ("." in found[1] or ":" in node.value):
                yield found[1], ALL


@cache
def definitions(module: str) -> dict[str, list[ast.stmt]]:
    """The statements of a module by the names they define; "" for all others."""
    found: dict[str, list[ast.stmt]] = {"": []}
    for node in ast.parse(path_of(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [getattr(node, "name", "")]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inner = [n for target in targets for n in ast.walk(target)]
            names = [n.id for n in inner if isinstance(n, ast.Name)] or [""]
        for name in names:
            if name != "__all__":
                found.setdefault(name, []).append(node)
    return found


@cache
def imports_of(module: str) -> dict[str, Name]:
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    return dict(imported(tree, module))


def uses(name: Name) -> set[Name]:
    """The project's names that a definition's code uses directly."""
    module, inner = name
    here, others = definitions(module), imports_of(module)
    if inner == ALL:
        return {(module, key) for key in here} | set(others.values())
    found = {(module, "")} if here[""] else set()
    for node in here.get(inner, []):
        found |= {target for _, target in imported(node, module)} | set(named(node))
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in here:
                found.add((module, part.id))
            elif isinstance(part, ast.Name) and part.id in others:
                found.add(others[part.id])
    if inner not in here and inner in others:  # imported there from elsewhere
        found.add(others[inner])
    return found


def reached(code: str) -> set[Name]:
    """Every name of the project that running `code` may reach."""
    tree = ast.parse(code)
    waiting = {target for _, target in imported(tree)} | set(named(tree))
    found: set[Name] = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= uses(name) - found
    return found


def files(code: str, names: set[Name], root: Path) -> set[Path]:
    """What is read as data: checkpoints, tables, the world's words, shapes."""
    found: set[Path] = set()
    for name in set(re.findall(r"checkpoints/([\w-]+)", code)):
        found.update((root / "checkpoints" / name).glob("*"))
    tables = [root / name for name in re.findall(r"benchmarks/[\w-]+\.json", code)]
    found.update(path for path in tables if path.exists())
    if any(module.startswith("littleworld") for module, _ in names):
        found.update(PACKAGES["littleworld"].glob("*.toml"))
    if ("minillm.transformer", "ModelConfig") in names:
        found.update((PACKAGES["minillm"] / "presets").glob("*.json"))
    return found


def fingerprint(cells: list[str], root: Path = ROOT) -> str:
    """Hash of a notebook's code cells, and of all that they reach."""
    code = "\n".join(cells)
    shown = SHOWS_TEXT.search(code)
    names, digest = reached(code), hashlib.sha256()
    for cell in cells:
        digest.update(plain(cell).encode() + b"\0")
    for module, name in sorted(names):
        if name != ALL:
            nodes = definitions(module).get(name, [])
            raw = map(ast.unparse, nodes)
            body = "\n".join(
                raw if shown and has_help(module, nodes) else map(plain, raw)
            )
            digest.update(f"{module}:{name}\n{body}\0".encode())
    for path in sorted(files(code, names, root)):
        digest.update(path.name.encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def has_help(module: str, nodes: list[ast.stmt]) -> bool:
    """Whether a command's help shows these docstrings: the upper wing's, settings'."""
    settings = any(getattr(node, "decorator_list", []) for node in nodes)
    return settings or module.startswith("minillm.app")
