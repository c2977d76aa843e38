"""The notebook runs from its first cell to its last in a new kernel, and its committed outputs are of such a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
SCRIPT = Path(__file__).parent / "execute_notebook.py"


def outputs(notebook):
    """The outputs of each cell with code."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join(text for output in cell for text in output.get("text", ""))


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook as a run in a folder of its own writes it."""
    folder = tmp_path_factory.mktemp("notebook")
    for name in ("toy", "private_task"):
        (folder / name).symlink_to(ROOT / "examples" / name)
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    command = [sys.executable, SCRIPT, NOTEBOOK, folder / "out.ipynb", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out.ipynb"


def test_every_cell_runs_and_nothing_is_on_standard_error(executed):
    streams = [output for cell in outputs(executed) for output in cell]
    assert {(output["output_type"], output.get("name")) for output in streams} == {("stream", "stdout")}


def test_what_is_committed_is_of_such_a_run(executed):
    """Numbers may differ from one kind of processor to another, so they are not compared."""

    def shape(notebook):
        return [len(printed(cell).splitlines()) for cell in outputs(notebook)]

    committed, again = shape(NOTEBOOK), shape(executed)
    assert [lines > 0 for lines in committed] == [lines > 0 for lines in again]
    assert committed[1:3] == again[1:3] == [8, 11]
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(cell.get("execution_count") is None and not cell["metadata"] for cell in kept["cells"])


def test_the_notebook_is_small_and_names_no_place():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 20_000
    assert "/home" not in text
    assert "/tmp" not in text


def test_the_cells_of_the_notebook_search_merge_and_score(executed):
    search, _, verdict, texts, own_evaluator, own_method = [printed(cell) for cell in outputs(executed)][1:]
    assert search.startswith("trial 0: complete, ")
    assert "The best merge found (trial " in verdict
    assert "reverse abcdef=" in texts
    assert all(cell.count("complete") == 4 for cell in (own_evaluator, own_method))
