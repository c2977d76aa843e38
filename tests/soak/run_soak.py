"""A soak: thousands of trials on a Ray cluster of three nodes and PostgreSQL, while one thing after another breaks.

    python tests/soak/run_soak.py [--trials 5000] [--minutes 60] [--seed 1] [--json]

A worker or a node is killed or stopped every 20 s, the controller or its database every 3 minutes; the controller is
started again as a supervisor would. All faults are planned from the seed; what they hit goes to standard error, a line
each. In the end it is checked that every trial was told once and has its items once, that every process of the
controller ended as the contract of exit codes says, and how much memory it took beside a bare Optuna process with the
same study. The controller has libraries that bare Optuna has not (Ray, torch); a search of two trials on the same
cluster shows how much they take, and the check compares what the study adds to either. Exit code 1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import yaml
from fault_plan import OF_THE_CLUSTER, OF_THE_CONTROLLER, Fault, plan
from servers import Server, postgres_server
from soak_findings import findings
from soak_nodes import RayNodes, ray_nodes
from study_memory import optuna_mb, study_mb
from supervised_runs import SupervisedRuns

SCHEMA = 1
NAME = "soak"
MODELS = Path(__file__).parents[2] / "examples" / "toy" / "models"
MEMORY_RATIO = 1.2
LITTLE = 2  # trials of a search whose memory is that of the libraries


def main() -> int:
    arguments = _arguments()
    with (
        redirect_stdout(sys.stderr),  # servers and Ray may print
        tempfile.TemporaryDirectory(prefix="evomerge-soak-") as folder,
        postgres_server() as database,
        ray_nodes(arguments.nodes, arguments.slots) as nodes,
    ):
        document = _soak(Path(folder), database, nodes, arguments)
    print(json.dumps(document, indent=2) if arguments.json else _table(document))
    return 0 if all(document["checks"].values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=60.0, help="in which they have to be complete")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the search")
    parser.add_argument("--nodes", type=int, default=3, help="of the cluster, its head among them")
    parser.add_argument("--slots", type=int, default=2, help="workers that a node has room for")
    parser.add_argument("--delay", type=float, default=2.0, help="seconds that scoring takes, about")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between faults of workers and nodes")
    parser.add_argument("--every-large", type=float, default=180.0, help="seconds between faults of the controller")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def _soak(folder: Path, database: Server, nodes: RayNodes, arguments: argparse.Namespace) -> dict[str, Any]:
    (folder / "storage_url").write_text(database.url)
    command = _command(folder, NAME, arguments.trials, nodes, arguments)
    runs = SupervisedRuns(command, database, folder / "said")
    began = time.monotonic()
    finished, met, broken = _under_faults(runs, nodes, arguments)
    minutes = (time.monotonic() - began) / 60
    found = findings(database.url, NAME, folder / NAME, arguments.trials)
    memory = _memory(
        folder / "storage_url",
        peak=max(run.peak_mb for run in runs.runs),
        again=_peak_of(command, database) if finished else 0.0,
        little=_peak_of(_command(folder, "little", LITTLE, nodes, arguments), database),
    )
    wrong = [asdict(run) | {"allowed": sorted(run.allowed)} for run in runs.runs if not run.is_by_contract]
    return {
        "schema": SCHEMA,
        "seed": arguments.seed,
        "trials": arguments.trials,
        "nodes": arguments.nodes,
        "workers": arguments.nodes * arguments.slots,
        "minutes": minutes,
        "faults": dict(sorted(met.items())),
        "faults_that_could_not_be_made": broken,
        "runs": Counter(str(run.exit_code) for run in runs.runs),
        "slowest_end_seconds": max(run.seconds_to_end or 0.0 for run in runs.runs),
        "against_the_contract": wrong,
        "said": "" if finished and not wrong else (folder / "said").read_text(errors="replace")[-4000:],
        **found,
        "memory": memory,
        "checks": {
            f"complete within {arguments.minutes:g} minutes": finished,
            "lost 0": found["lost"] == found["items_lost"] == 0,
            "doubled 0": found["doubled"] == found["items_doubled"] == 0,
            "exit codes by contract": not wrong,
            "all faults were made": not broken,
            f"study in memory at most {MEMORY_RATIO:g} x bare Optuna": memory["ratio_of_the_study"] <= MEMORY_RATIO,
        },
    }


def _under_faults(
    runs: SupervisedRuns, nodes: RayNodes, arguments: argparse.Namespace
) -> tuple[bool, Counter[str], list[str]]:
    """Run the search under all faults.

    Returns:
        Whether it was finished in time, how often each fault happened, and why others could not be made.
    """
    seconds, over, met = 60 * arguments.minutes, threading.Event(), Counter[str]()
    small = plan(arguments.seed, seconds, every=arguments.every, kinds=OF_THE_CLUSTER)
    large = plan(arguments.seed, seconds, every=arguments.every_large, kinds=OF_THE_CONTROLLER)
    with ThreadPoolExecutor(2) as threads:
        faults = [
            threads.submit(_break, planned, meet, over, met)
            for planned, meet in ((small, nodes.meet), (large, runs.meet))
        ]
        try:
            finished = runs.until_finished(seconds)
        finally:
            over.set()
    return finished, met, [repr(fault.exception()) for fault in faults if fault.exception() is not None]


def _command(folder: Path, name: str, trials: int, nodes: RayNodes, arguments: argparse.Namespace) -> list[str]:
    """The command of a search that writes to the database."""
    spec = {
        "name": name,
        "sources": [{"name": each, "location": str(MODELS / each)} for each in ("base", "reverse", "sort")],
        "space": "task-arithmetic-per-block",
        "evaluator": {"name": "synthetic", "items": 40, "delay_seconds": arguments.delay, "delay_spread": 0.3},
        "budget": {"trials": trials},
        "baselines": [],
        "verdict": {"best": 1},
        "workers": {"count": arguments.nodes * arguments.slots, "min": 1, "cpus": 1},
        "storage": "file:storage_url",
        "artifacts": str(folder / name),
        "seed": arguments.seed,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    return [sys.executable, "-m", "evomerge.cli", "run", str(file), "--ray", nodes.address, "--json"]


def _break(
    planned: Sequence[Fault], meet: Callable[[Fault], str | None], over: threading.Event, met: Counter[str]
) -> None:
    """Let the planned faults happen, each at its time, until the search is over."""
    began = time.monotonic()
    for fault in planned:
        if over.wait(max(0.0, fault.second - (time.monotonic() - began))):
            return
        hit = meet(fault)
        met[fault.kind if hit is not None else "nothing to hit"] += 1
        print(f"{time.monotonic() - began:7.1f} s  {fault.kind}: {hit or 'nothing there'}", file=sys.stderr, flush=True)


def _peak_of(command: list[str], database: Server) -> float:
    """Peak of the resident memory in MB of a command to which nothing happens."""
    runs = SupervisedRuns(command, database, Path(command[command.index("run") + 1]).with_suffix(".said"))
    runs.until_finished(600.0)
    return runs.runs[-1].peak_mb


def _memory(url_file: Path, *, peak: float, again: float, little: float) -> dict[str, float]:
    """Peaks of resident memory in MB, each of a process of its own, and how much of them is the study.

    Args:
        peak, again, little: of the controller under faults, begun again on the finished study, and with two trials.
    """
    bare, optuna_alone = study_mb(url_file, NAME), optuna_mb(url_file)
    here, there = peak - little, bare - optuna_alone
    return {
        "controller_mb": peak,
        "controller_begun_again_mb": again,
        "controller_with_two_trials_mb": little,
        "bare_optuna_with_the_study_mb": bare,
        "bare_optuna_mb": optuna_alone,
        "ratio": peak / bare,
        "study_in_the_controller_mb": here,
        "study_in_bare_optuna_mb": there,
        "ratio_of_the_study": here / there,
    }


def _table(document: dict[str, Any]) -> str:
    memory = document["memory"]
    rows = [
        ("trials, workers on nodes", f"{document['trials']:,}, {document['workers']} on {document['nodes']}"),
        ("minutes", f"{document['minutes']:.1f}"),
        *((f"{kind}, times", str(count)) for kind, count in document["faults"].items()),
        ("exit codes of the controller", ", ".join(f"{code}: {count}" for code, count in document["runs"].items())),
        ("against the contract", str(len(document["against_the_contract"]))),
        ("slowest end after a signal", f"{document['slowest_end_seconds']:.1f} s"),
        ("lost, doubled, failed", ", ".join(str(document[key]) for key in ("lost", "doubled", "failed"))),
        ("files of items lost, doubled", f"{document['items_lost']}, {document['items_doubled']}"),
        ("controller at its peak", f"{memory['controller_mb']:.0f} MB"),
        ("of it, with two trials", f"{memory['controller_with_two_trials_mb']:.0f} MB"),
        ("controller begun again", f"{memory['controller_begun_again_mb']:.0f} MB"),
        ("bare Optuna with the study", f"{memory['bare_optuna_with_the_study_mb']:.0f} MB"),
        ("of it, without the study", f"{memory['bare_optuna_mb']:.0f} MB"),
        ("controller / bare Optuna, libraries included", f"{memory['ratio']:.2f}"),
        (
            "the study alone",
            f"{memory['study_in_the_controller_mb']:.0f} MB / {memory['study_in_bare_optuna_mb']:.0f} MB",
        ),
        *((f"check: {name}", "yes" if held else "**no**") for name, held in document["checks"].items()),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    sys.exit(main())
