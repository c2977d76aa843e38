"""Run a notebook and write it with its outputs: `python execute_notebook.py NOTEBOOK OUT FOLDER`.

Relative paths of the notebook begin in FOLDER. Times, counts of executions and other traces of a run are not written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

SECONDS = 300  # for one cell


def main(notebook: Path, out: Path, folder: Path) -> None:
    """Run all cells; the first error ends it."""
    content = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(
        content,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources=where,
    ).execute()
    content.metadata = {"kernelspec": content.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
        for output in cell.get("outputs", ()):
            if "execution_count" in output:
                output.execution_count = None
    nbformat.write(content, out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
