"""Notebooks: run their cells in this process, and write what they show.

python tests/notebooks.py examples/check.ipynb
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def read_notebook(path: Path) -> Notebook:
    """Return a notebook (format 4)."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def run_cells(notebook: Notebook) -> tuple[dict[str, object], Iterator[list[dict[str, Any]]]]:
    """Return the names that the cells of code share, and an iterator that runs them in order, with their outputs."""
    names: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return names, (_run("".join(cell["source"]), names, number) for number, cell in enumerate(cells, 1))


def _run(source: str, names: dict[str, object], number: int) -> list[dict[str, Any]]:
    """Run a cell; return what it printed, and its last expression's value as Jupyter shows it."""
    program, printed = ast.parse(source), io.StringIO()
    last = program.body.pop() if program.body and isinstance(program.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(program, f"<cell {number}>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        shown = {"data": _data(value), "metadata": {}, "execution_count": number}
        outputs.append({"output_type": "execute_result", **shown})
    return outputs


def _data(value: object) -> dict[str, Any]:
    if hasattr(value, "savefig"):  # a figure of Matplotlib
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80, bbox_inches="tight")
        return {"image/png": base64.b64encode(picture.getvalue()).decode() + "\n", "text/plain": ["A figure"]}
    data: dict[str, Any] = {"text/plain": repr(value)[:300].splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return data


def main(path: Path) -> None:
    """Run a notebook, and write its outputs into it."""
    notebook = read_notebook(path)
    _, ran = run_cells(notebook)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(cells, ran, strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
        print(number, os.times().elapsed, json.dumps(outputs)[:2000], file=sys.stderr, flush=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
