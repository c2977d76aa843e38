"""The first search of the README by an installed evomerge: `python tests/first_search.py PYTHON FOLDER [--trials N]`.

The evomerge is that of the interpreter PYTHON, and no checkout may be on its path. Each step is the command of the
README; the last ones load the export.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOADS = (
    "import sys; from transformers import AutoModelForCausalLM; "
    "print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).num_parameters())"
)


def first_search(python: Path, folder: Path, *, trials: int | None = None) -> dict[str, object]:
    """Search, look and export in `folder`, which is outside of the checkout; the leaderboard as data.

    Raises:
        CalledProcessError: a command failed.
        ValueError: the package is that of the checkout.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str) -> str:
        command = [str(python), *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    place = Path(run("-c", "import evomerge; print(evomerge.__file__)").strip()).resolve()
    if place.is_relative_to(ROOT / "evomerge"):
        raise ValueError(f"{python} takes evomerge from the checkout, {place}")
    module = ("-m", "evomerge")
    run(*module, "init", "--example", "toy", "--out", "toy")
    run(*module, "check", "toy/search.yaml")
    run(*module, "run", "toy/search.yaml", *(["--trials", str(trials)] if trials else []))
    run(*module, "status", "toy/search.yaml")
    run(*module, "export", "toy/search.yaml", "--out", "my-merge")
    run("-c", LOADS, "my-merge")
    board: dict[str, object] = json.loads(run(*module, "leaderboard", "toy/search.yaml", "--json"))
    return board


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(first_search(given.python.absolute(), given.folder, trials=given.trials)["winner"])
