"""Which files of this project a script runs: from its imports, never from a kept list.

Snakemake does not see modules that a script imports, so an edit of the library
would rerun nothing. Every rule therefore takes their hashes as an input.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


def code_files(script: Path, root: Path, *modules: str) -> list[Path]:
    """Return the script and every project file that it imports, directly or through others.

    Args:
        script: a Python file.
        root: the project's folder; imports are looked for below it and beside the script.
        modules: what the script imports by a name that it learns at run time: dotted names, or paths relative to
            `root`.

    Returns:
        The script first, then the imported files, sorted. The data files of an imported package, such
        as templates, belong to it.

    Raises:
        ValueError: the project has no such module.
    """
    files: set[Path] = set()
    stack = [script]
    for module in modules:
        name = module.removesuffix(".py").replace("/", ".")
        base = root.joinpath(*name.split("."))
        if not (base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()):
            raise ValueError(f"{module} is no module of {root}; write its dotted name or its path below that folder")
        stack += _files_of(name, root)
    while stack:
        path = stack.pop()
        if path not in files:
            files.add(path)
            stack += _imported_files(path, root)
            if path.name == "__init__.py":
                files.update(_data_files(path.parent))
    return [script, *sorted(files - {script})]


def _data_files(package: Path) -> list[Path]:
    return [
        path
        for path in package.iterdir()
        if path.is_file()
        and path.suffix not in (".py", ".pyc", ".typed")
        # What an editor or a file browser leaves there.
        and not path.name.startswith(".")
        and not path.name.endswith("~")
    ]


def _files_of(name: str, folder: Path) -> list[Path]:
    """Return the files that importing a dotted name below a folder runs: for a.b.c, a/__init__.py comes first."""
    bases = [folder.joinpath(*name.split(".")[: length + 1]) for length in range(name.count(".") + 1)]
    return [file for base in bases for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()]


@cache
def _imported_files(path: Path, root: Path) -> list[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        # Imports inside functions count as well: they are how heavy libraries are kept lazy.
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return sorted({file for name in names for folder in (root, path.parent) for file in _files_of(name, folder)})
