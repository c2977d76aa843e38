"""One leaderboard of all merge systems on the six toy skills: `python examples/methods/systems.py`.

Runs the search of `systems.yaml` with its baselines, then one search for each system whose parameters are searched, all
over the same items, and writes the table into docs/systems.md. Every search is an ordinary one, with a search.yaml of
its own in `runs/systems/`: what was killed goes on, what is finished is read.

The winner of a search was chosen among many on the search items; the column to compare is the one of held-out items.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from compare import write

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs" / "systems.md"
RUNS = HERE.parent.parent / "runs" / "systems"
TRIALS = 20

# Search -> (title, fields of its search.yaml that differ).
SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "task-arithmetic": ("task arithmetic, a weight per expert and block, CMA-ES", {}),
    "ties": ("TIES per block, CMA-ES", {"space": "ties-per-block"}),
    "dare-ties": ("DARE-TIES per block, CMA-ES", {"space": "dare-ties-per-block"}),
    "pcb": ("PCB-Merging, CMA-ES", {"space": "pcb-global"}),
    "fisher": ("Fisher-weighted averaging, CMA-ES", {"space": "fisher-global"}),
    "regmean": ("RegMean, CMA-ES", {"space": "regmean-global"}),
    "opcm": ("OPCM, order and alpha, TPE", {"space": "opcm", "sampler": {"name": "tpe"}}),
    "lfs": ("LFS (a method per block), CatCMA", {"space": "lfs", "sampler": {"name": "catcma"}}),
    "lfs-forest": (
        "LFS, random forest on Hyperband brackets",
        {"space": "lfs", "sampler": {"name": "forest"}, "fidelity": "hyperband"},
    ),
    "layers": ("DIS (a path of layers), TPE", {"space": "layer-path", "sampler": {"name": "tpe"}}),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: its title, and the row of the leaderboard's JSON document."""

    title: str
    row: Mapping[str, Any]

    @property
    def held_out(self) -> float:
        return float(self.row["held_out"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"of each search (default {TRIALS})")
    parser.add_argument("--only", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="searches to run")
    parser.add_argument("--no-write", action="store_true", help="print the table and leave the page as it is")
    arguments = parser.parse_args()
    rows = [row for name in arguments.only for row in _rows(name, arguments.trials)]
    text = table(rows)
    print(text)
    if not arguments.no_write:
        write(text, DOCS)


def _rows(name: str, trials: int) -> Iterator[Row]:
    """The winner of a search; with the first search its sources and baselines."""
    title, changes = SEARCHES[name]
    spec = str(spec_file(name, trials))
    print(f"{name}: {title}", flush=True)
    _evomerge("run", spec)
    for row in json.loads(_evomerge("leaderboard", spec, "--json"))["rows"]:
        if row["kind"] == "best":
            yield Row(title=f"**{title}**, the best of {trials} trials", row=row)
        elif not changes and row["kind"] == "source":
            yield Row(title=f"{row['label']}, {'the base' if row['label'] == 'base' else 'an expert'}", row=row)
        elif not changes and row["kind"] == "baseline":
            models = len(row["models"]["recipes"]) if row["models"] else 1
            yield Row(title=row["label"] + (f", several models ({models})" if models > 1 else ""), row=row)


def _evomerge(*arguments: str) -> str:
    command = [sys.executable, "-m", "evomerge.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
    return done.stdout


def spec_file(name: str, trials: int) -> Path:
    """Write the search.yaml of a search."""
    _, changes = SEARCHES[name]
    document = yaml.safe_load((HERE / "systems.yaml").read_text(encoding="utf-8"))
    for source in document["sources"]:
        source["location"] = str((HERE / source["location"]).resolve())
    storage = f"sqlite:///{RUNS}/{name}/study.db"
    document |= {"name": name, "budget": {"trials": trials}, "storage": storage, **changes}
    if changes:
        document["baselines"] = ["uniform-soup"]
    path = RUNS / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, the best on held-out items first."""
    lines = ["| system | held-out | search items | scored | seconds |", "|---|---:|---:|---:|---:|"]
    for each in sorted(rows, key=lambda each: -each.held_out):
        search, cost = each.row["search"]["value"], each.row["cost"]
        held_out = f"{100 * each.held_out:.1f} ± {100 * each.row['held_out']['stderr']:.1f}"
        paid = f"{cost['candidates']} | {cost['seconds']:.0f}" if cost else " | "
        lines.append(f"| {each.title} | {held_out} | {100 * search:.1f} | {paid} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
