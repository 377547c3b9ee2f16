"""Which files of this project a script runs: found from its imports, never from a kept list.

Snakemake does not see modules that a script imports, so an edit of the library
would rerun nothing. Every rule therefore takes the files found here as inputs.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


def code_files(script: Path, root: Path) -> list[Path]:
    """Return the script and every project file that it imports, directly or through others.

    Args:
        script: a Python file.
        root: the project's folder; imports are looked for below it and beside the script.

    Returns:
        The script first, then the imported files, sorted. The data files of an imported package, such
        as templates, belong to it.
    """
    found: set[Path] = set()
    stack = [script]
    while stack:
        path = stack.pop()
        if path not in found:
            found.add(path)
            stack += _imported_files(path, root)
            if path.name == "__init__.py":
                found.update(_data_files(path.parent))
    return [script, *sorted(found - {script})]


def _data_files(package: Path) -> list[Path]:
    return [path for path in package.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc", ".typed")]


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
    files: set[Path] = set()
    for name in names:
        parts = name.split(".")
        for folder in (root, path.parent):
            # Importing a.b.c runs a/__init__.py and a/b/__init__.py first.
            for length in range(1, len(parts) + 1):
                base = folder.joinpath(*parts[:length])
                files.update(file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file())
    return sorted(files)
