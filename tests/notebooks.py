"""Run a notebook's cells in a kernel of this environment, and write what they show.

python tests/notebooks.py examples/check.ipynb
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


def run_notebook(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder and keep the outputs in it; CellExecutionError names the cell that failed."""
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=3600, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})  # the checkout's package, wherever the kernel runs
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran: another run is not another notebook
        if cell.cell_type == "code":  # bars and warnings of libraries are hundreds of lines
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main(path: Path) -> None:
    """Run a notebook, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run_notebook(notebook, Path(folder))
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
