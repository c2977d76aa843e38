"""From nothing to a verdict in one command: `python examples/smollm2/run.py`.

Makes the base, the items, the experts, searches their merges, exports the best one, and writes the table of README.md
from the leaderboard. Whatever is there already is kept: after a kill the same command continues.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
README = HERE / "README.md"
SPEC = str(HERE / "search.yaml")
RUN = HERE / "runs" / "smollm2"
SECONDS = RUN / "seconds.json"  # stage -> the seconds that it took when it came to its end for the first time
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

EVOMERGE = ("-m", "evomerge.cli")
STAGES = {
    "base": (str(HERE / "prepare.py"),),
    "items": (str(HERE / "items.py"),),
    "experts": (str(HERE / "train_experts.py"),),
    "check": (*EVOMERGE, "check", SPEC),
    "search": (*EVOMERGE, "run", SPEC),
    "export": (*EVOMERGE, "export", SPEC, "--trial", "best", "--out", str(RUN / "best")),
}


def python(arguments: Sequence[str], *, capture: bool = False) -> str:
    """The standard output of a Python command where it is captured; the command's failure ends this one."""
    output = subprocess.PIPE if capture else None
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=output, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def run_stages() -> None:
    """Run the stages one after the other and store how long each took."""
    for stage, arguments in STAGES.items():
        print(f"== {stage}", flush=True)
        started = time.monotonic()
        python(arguments)
        RUN.mkdir(parents=True, exist_ok=True)
        SECONDS.write_text(json.dumps({stage: time.monotonic() - started} | read_seconds()), encoding="utf-8")


def read_seconds() -> dict[str, float]:
    return dict(json.loads(SECONDS.read_text(encoding="utf-8"))) if SECONDS.is_file() else {}


def table(document: Mapping[str, Any]) -> str:
    """The leaderboard's rows in Markdown, in its order, and the verdict below.

    Args:
        document: that of `evomerge leaderboard --json`.
    """
    rows = [row for row in document["rows"] if row["held_out"]]
    tasks = list(rows[0]["held_out"]["tasks"])
    names = [task.removeprefix("smollm2_") for task in tasks]
    lines = [
        "| model | " + " | ".join(names) + " | mean | on search items | merges scored | minutes |",
        "|---|" + "---:|" * (len(tasks) + 4),
    ]
    for row in rows:
        held_out, search, cost = row["held_out"], row["search"], row["cost"]
        label = f"**{row['label']}**" if row["kind"] == "best" else row["label"]
        cells = [f"{100 * held_out['tasks'][task]['value']:.1f}" for task in tasks]
        cells.append(f"{100 * held_out['value']:.1f} ± {100 * held_out['stderr']:.1f}")
        cells.append(f"{100 * search['value']:.1f}" if search else "–")
        cells += [str(cost["candidates"]), f"{cost['seconds'] / 60:.1f}"] if cost else ["–", "–"]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{document['verdict']['sentence']}"


def conditions(origin: str, seconds: Mapping[str, float]) -> str:
    """Origin of the base, and how long the stages took on which machine."""
    stages = ", ".join(f"{stage} {taken / 60:.1f}" for stage, taken in seconds.items())
    machine = f"{os.cpu_count()} cores ({platform.machine()})"
    return f"Base: {origin}. Minutes of each stage on {machine}: {stages}; {sum(seconds.values()) / 60:.0f} in all."


def write_table(text: str, file: Path) -> None:
    """Replace what is between the two marks of a file."""
    before, rest = file.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-write", action="store_true", help="print the table and leave README.md as it is")
    chosen = parser.parse_args()
    run_stages()
    document = json.loads(python((*EVOMERGE, "leaderboard", SPEC, "--json"), capture=True))
    origin = (HERE / "models" / "base" / "origin.txt").read_text(encoding="utf-8").strip()
    ordered = {stage: taken for stage in STAGES if (taken := read_seconds().get(stage)) is not None}
    text = f"{table(document)}\n\n{conditions(origin, ordered)}"
    print(text)
    if not chosen.no_write:
        write_table(text, README)


if __name__ == "__main__":
    main()
