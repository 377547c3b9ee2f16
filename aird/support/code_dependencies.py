"""Which files of this project a script runs, and what of them decides results: from the code, never from a kept list.

Snakemake does not see modules that a script imports, so an edit of the library would rerun nothing. Every rule
therefore takes a record of their hashes as an input.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from aird.support.files import read_json, write_json

# Arguments with words for readers. Descriptions stand in the reference of the configuration alone, the others of a
# plug-in also in the report, in cards and in helps.
DESCRIPTIONS = {"description"}
WORDS = {"title", "summary", "usage", "says"}


def code_files(script: Path, root: Path, *chosen: Path, shown: Iterable[Path] = ()) -> list[Path]:
    """Return the script and every file of the project that it imports, directly or through others.

    Args:
        script: a Python file.
        root: the project's folder; imports are looked for below it and beside the script.
        chosen: further files that the script imports by a name that it learns at run time, such as plug-ins. One that
            lies elsewhere may import files of its own package, and files beside it.
        shown: plug-ins that the script loads for their words and settings only. What they import inside functions, for
            their work, does not run.

    Returns:
        The script first, then the other files, sorted. The data files of an imported package, such as templates,
        belong to it.
    """
    files = _reached([script, *chosen], root, on_loading=False) | _reached(shown, root, on_loading=True)
    return [script, *sorted(files - {script})]


def _reached(starts: Iterable[Path], root: Path, on_loading: bool) -> set[Path]:
    files: set[Path] = set()
    stack = [part for path in starts for part in _with_packages(path)]
    while stack:
        path = stack.pop()
        if path not in files:
            files.add(path)
            stack += _imported(path, root, on_loading)
            if path.name == "__init__.py":
                files.update(_data_files(path.parent))
    return files


@cache  # a library file is reached from many scripts
def _imported(path: Path, root: Path, on_loading: bool) -> list[Path]:
    """Return the files that a file imports: when it is loaded, or also inside functions."""
    code = _code(path)
    folders = dict.fromkeys((root, path.parent, _with_packages(path)[0].parent.parent))
    names = code.imports_on_loading if on_loading else code.imports
    return [file for name in names for folder in folders for file in _files_of(name, folder)]


def code_hash(path: Path, words: bool = False) -> str:
    """Return a hash of what a file computes, 64 hexadecimal digits; of a file that is no Python, of its bytes.

    Comments, docstrings, descriptions, messages of errors and lines of logs are left out: they change no result. So
    are fields of settings (`name: type = Field(...)`): their values are parameters of the rules that use them.

    Args:
        path: a file.
        words: count the words of plug-ins for readers too, as the report shows them.
    """
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    code = _code(path)
    return code.with_words if words else code.without_words


class _Code(NamedTuple):
    """What a Python file imports, at all and when it is loaded, and the hashes of what it computes."""

    imports: list[str]
    imports_on_loading: list[str]
    with_words: str
    without_words: str


def _read(content: bytes) -> _Code:
    tree = ast.parse(content)
    # Imports inside functions count as well: they are how heavy libraries are kept lazy.
    later = {node for part in ast.walk(tree) if _runs_later(part) for node in ast.walk(part)}
    names: set[str] = set()
    on_loading: set[str] = set()
    for node in ast.walk(tree):
        found: set[str] = set()
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        names |= found
        if node not in later:
            on_loading |= found
    hashes = [
        hashlib.sha256(ast.dump(_WithoutWords(left_out).visit(tree)).encode()).hexdigest()
        for left_out in (DESCRIPTIONS, DESCRIPTIONS | WORDS)  # in place, one after the other
    ]
    return _Code(sorted(names), sorted(on_loading), *hashes)


def _runs_later(node: ast.AST) -> bool:
    """Return whether loading a module leaves out what this part of it holds: a function, or imports for types."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


class _WithoutWords(ast.NodeTransformer):
    """Take away what changes no result, in place."""

    def __init__(self, keywords: set[str]) -> None:
        self.keywords = keywords

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:  # docstrings, lines of logs
        value = node.value
        if isinstance(value, ast.Constant):
            return None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            owner = value.func.value
            if isinstance(owner, ast.Name) and owner.id == "logger":
                return None
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # words as attributes of a class
        node.body = [
            each
            for each in node.body
            if not (isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name))
            or each.targets[0].id not in self.keywords
        ]
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:  # fields of settings
        value = node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Field":
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        for child in ast.walk(node):
            if isinstance(child, ast.JoinedStr):
                child.values = []
            elif isinstance(child, ast.Constant) and isinstance(child.value, str):
                child.value = ""
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in self.keywords]
        return self.generic_visit(node)


@cache
def _code(path: Path) -> _Code:
    content = path.read_bytes()
    key = hashlib.sha256(content).hexdigest()
    memory = _memory()
    if key not in memory:
        memory[key] = _read(content)
    return _Code(*memory[key])


@cache
def _memory() -> dict[str, Sequence[Any]]:
    """Return what earlier processes read, by the hashes of files: parsing all of them takes a second of every plan."""
    version = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()[:12]
    file = Path(".snakemake") / f"aird.code.{version}.json"
    known: dict[str, Sequence[Any]] = read_json(file) if file.is_file() else {}
    before = len(known)

    def remember() -> None:
        if len(known) > before and file.parent.is_dir():
            write_json(file, known)

    atexit.register(remember)
    return known


@cache
def _data_files(package: Path) -> list[Path]:
    return [
        path
        for path in package.iterdir()
        if path.is_file()
        and path.suffix not in (".py", ".pyc", ".pyi", ".typed")
        # What an editor or a file browser leaves there.
        and not path.name.startswith(".")
        and not path.name.endswith("~")
    ]


def _with_packages(path: Path) -> list[Path]:
    """Return a file and, in front of it, the `__init__.py` of each package that it lies in."""
    packages: list[Path] = []
    folder = path.parent
    while (folder / "__init__.py").is_file():
        packages.insert(0, folder / "__init__.py")
        folder = folder.parent
    return [*packages, path] if path.name != "__init__.py" else packages


@cache
def _files_of(name: str, folder: Path) -> list[Path]:
    """Return the files that importing a dotted name below a folder runs: for a.b.c, a/__init__.py comes first."""
    if name.split(".")[0] not in _names(folder):
        return []
    bases = [folder.joinpath(*name.split(".")[: length + 1]) for length in range(name.count(".") + 1)]
    return [file for base in bases for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()]


@cache
def _names(folder: Path) -> set[str]:
    """Return what can be imported from a folder."""
    return {path.stem for path in folder.iterdir()}
