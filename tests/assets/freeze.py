"""Makes the frozen studies of tests/assets/schema-1, once, with the evomerge of that schema. Run by hand.

    OMP_NUM_THREADS=1 python tests/assets/freeze.py

Five searches over models of examples/toy in SQLite, and two of them in a journal too, with their artifacts:

* `race`: cma with companion values; dropped trials, an incumbent; started from a baseline; a proposal cut short; a
  verdict, given again for later winners; and, after that, a trial that was running when the program was stopped.
* `brackets`: hyperband with tpe on a space of several methods.
* `front`: pareto with nsgaii and constraints; candidates that fail (in a search that is not resumed: which ones fail
  depends on the last bits of their params, which may differ on another processor).
* `goals`: pareto with cma, which searches for what is better than the baselines; started from a trial of `race`.
* `skills`: lm-eval tasks (the pack beside the studies), baselines, DAM with its coefficients, a second training that
  was stopped, a verdict.

Beside them, values.json holds all that `frozen.py` reads of them, the same from both storages, and the trials that
`race` goes on with.

A frozen study is never made again: later versions have to open those that there are. When the schema is raised, the new
one gets a folder of its own. `freeze.py --pin` writes only values.json again: for values that are newly read.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frozen
import optuna
import yaml

from evomerge.errors import Interrupted
from evomerge.search.run import Listener, run_baselines, run_search
from evomerge.spaces import load_space
from evomerge.spec import SearchSpec, override
from evomerge.storage.opening import open_storage

MODELS = "examples/toy/models"
PACK = "tests/assets/schema-1/two-skills"
EXPERTS = ("reverse", "sort")
ITEMS = {"calibration": 12, "search": 16, "held_out": 16}
BOX = "task-arithmetic-per-block"
FEW: dict[str, Any] = {"name": "synthetic", "items": 60, "conflict": 0.2, "tasks": 3}
MANY: dict[str, Any] = {"name": "synthetic", "items": 600, "steepness": 3.0}
DAM = {"name": "dam", "steps": 8, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 2}

SPECS: dict[str, dict[str, Any]] = {
    "race": {
        "space": BOX,
        "evaluator": {**MANY, "gold": True},
        "fidelity": "race",
        "baselines": ["uniform-soup", "ties", "greedy-soup"],
        "warm_start": {"baselines": 1},
        "seed": 7,
    },
    "brackets": {
        "space": "mixed-methods",
        "evaluator": MANY,
        "sampler": {"name": "tpe", "n_startup_trials": 4},
        "fidelity": {"name": "hyperband", "minimum": 60},
        "baselines": ["uniform-soup"],
    },
    "front": {
        "verdict": {"best": 1},
        "space": "linear-global",
        "evaluator": {**FEW, "raising": 0.25},
        "objective": {
            "aggregate": "pareto",
            "reference": "geometric_mean",
            "constraints": [{"task": "task_0", "at_least": "base", "tolerance": 0.05}],
        },
        "sampler": {"name": "nsgaii", "population_size": 4},
        "baselines": ["uniform-soup"],
    },
    "goals": {
        "verdict": {"best": 1},
        "space": BOX,
        "evaluator": FEW,
        "objective": {"aggregate": "pareto", "weights": {"task_1": 2.0}},
        "baselines": ["uniform-soup", "dare-ties"],
        "warm_start": {"studies": [{"name": "race"}]},
    },
    "skills": {
        "space": BOX,
        "evaluator": PACK,
        "objective": {"normalise": "sources"},
        "dtype": "float32",
        "baselines": ["uniform-soup", DAM],
    },
}


def spec_of(name: str, storage: str) -> SearchSpec:
    """A spec whose paths are relative to the root of the repository."""
    content = dict(SPECS[name])
    sources: list[dict[str, Any]] = [{"name": each, "location": f"{MODELS}/{each}"} for each in ("base", *EXPERTS)]
    if name == "skills":
        for source in sources[1:]:
            source["calibration"] = {"task": f"toy_{source['name']}", "items": 8}
    space = load_space(content.pop("space"), frozen.ROOT)
    common = {"workers": {"count": 1}, "verdict": {"best": 2}, "seed": 3}
    return SearchSpec.model_validate(
        {"name": name, "sources": sources, "space": space, "storage": storage, **common, **content}
    )


def search(spec: SearchSpec, trials: int, stop_at: int | None = None) -> None:
    """Search; stopped, as by a signal, once so many trials are finished."""

    def stop(finished: int) -> None:
        if stop_at is not None and finished >= stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    _stopped(
        lambda: run_search(
            override(spec, trials=trials),
            ray="none",
            listener=Listener(on_status=lambda status: stop(status.finished)),
        ),
        stop_at is not None,
    )


def _stopped(run: Callable[[], object], expected: bool) -> None:
    try:
        run()
    except Interrupted:
        if not expected:
            raise


def make(kind: str, folder: Path) -> None:
    """Run the searches in a new storage."""
    storage = frozen.url_of(kind, folder)
    specs = {name: spec_of(name, storage) for name in SPECS}
    search(specs["race"], 6)
    optuna.load_study(study_name="race", storage=open_storage(storage)).ask()  # a kill before the proposal was complete
    search(specs["race"], 10)
    search(specs["race"], 14)
    search(specs["race"], 18, stop_at=16)
    for name, trials in (("brackets", 9), ("front", 6), ("goals", 4), ("skills", 3)):
        if name in frozen.NAMES[kind]:
            search(specs[name], trials)

    def stop(progress: Any) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    _stopped(
        lambda: run_baselines(specs["skills"], ["dam-from-best"], ray="none", listener=Listener(on_progress=stop)), True
    )


def tidy(kind: str, folder: Path) -> None:
    """Leave what a study is opened with: no locks, no checkpoint, no free pages."""
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".lock", ".writer"):
            path.unlink()
    shutil.rmtree(folder / "artifacts" / "training", ignore_errors=True)
    if kind == "sqlite":
        with sqlite3.connect(folder / frozen.FILES[kind]) as database:
            database.execute("VACUUM")


def make_pack() -> None:
    """Two tasks of the toy skills, with few items."""
    shutil.copytree(frozen.ROOT / "evaluators" / "toy-skills", PACK)
    keep = {f"toy_{expert}" for expert in EXPERTS}
    for path in (*Path(PACK, "items").iterdir(), *Path(PACK, "tasks").iterdir()):
        if path.stem not in keep:
            path.unlink()
    content = yaml.safe_load(Path(PACK, "evaluator.yaml").read_text(encoding="utf-8"))
    content["tasks"] = [task for task in content["tasks"] if task["task"] in keep]
    content |= {"name": "two-skills", "description": "Two of the toy skills, with few items."}
    Path(PACK, "evaluator.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for path in Path(PACK, "items").iterdir():
        left, lines = dict(ITEMS), []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            part = json.loads(line)["part"]
            left[part] -= 1
            lines += [line] * (left[part] >= 0)
        path.write_text("".join(lines), encoding="utf-8")


def pin() -> None:
    """Write what is read of the frozen studies, and what the resumed one goes on with; first compare the storages."""
    read: dict[str, dict[str, Any]] = {}
    for kind in frozen.FILES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            storage = frozen.copy_of(kind, folder)
            read[kind] = {name: frozen.read(storage, name, folder) for name in frozen.NAMES[kind]}
            read[kind]["resumed"] = frozen.resume(storage)
    if different := frozen.differences(read["journal"], read["sqlite"]):
        sys.exit("the storages do not hold the same: " + "; ".join(different[:5]))
    frozen.write_pinned(read["sqlite"])


def main() -> None:
    os.chdir(frozen.ROOT)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "--pin" not in sys.argv:
        if frozen.FOLDER.exists():
            sys.exit(f"{frozen.FOLDER} exists; what is frozen is not made again (--pin reads it again)")
        socket.gethostname = lambda: "host"  # the name of this machine is nobody's business
        make_pack()
        for kind in frozen.FILES:
            (frozen.FOLDER / kind).mkdir(parents=True)
            make(kind, frozen.FOLDER / kind)
            tidy(kind, frozen.FOLDER / kind)
    pin()


if __name__ == "__main__":
    main()
