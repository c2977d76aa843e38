"""One merge from a file, start-up included: seconds and peak anonymous memory of `evomerge merge`, on 100 M models.

With `--mergekit PATH`, the `mergekit-yaml` of another environment, the same files are merged by it in turns. Models are
in bfloat16, a base and four experts; both programs start with warm files.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import arguments, progress, report
from made_up_models import save_model

EXPERTS = ("one", "two", "three", "four")
METHODS: dict[str, dict[str, float]] = {"linear": {"weight": 0.25}, "ties": {"weight": 0.5, "density": 0.2}}
SAMPLED = 0.02  # seconds between two looks at the memory of a process


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--mergekit", type=Path, help="the program mergekit-yaml of another environment")
    parser.add_argument("--folder", type=Path, help="where the models are kept for the next run (default: deleted)")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    programs = {"evomerge": [sys.executable, "-m", "evomerge", "merge"]}
    if given.mergekit is not None:
        programs["mergekit"] = [str(given.mergekit)]
    try:
        make_models(folder)
        rows = [row for method in METHODS for row in measure(folder, method, programs, given.runs)]
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    report({"benchmark": "static_merge"}, rows, given.json)


def make_models(folder: Path) -> None:
    for seed, name in enumerate(("base", *EXPERTS)):
        if not (folder / name / "model.safetensors").exists():
            progress(f"making {name}")
            save_model(folder / name, "100m", seed=seed, dtype=torch.bfloat16)


def measure(folder: Path, method: str, programs: dict[str, list[str]], runs: int) -> list[dict[str, Any]]:
    """Median seconds and largest memory of each program; they take turns."""
    file = write_file(folder, method)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(runs):
        for name, command in programs.items():
            progress(f"{method} by {name}, {number + 1} of {runs}")
            out = folder / f"out-{name}"
            arguments = [str(file), "--out", str(out)] if name == "evomerge" else [str(file), str(out)]
            found[name].append(run([*command, *arguments]))
            shutil.rmtree(out)
    return [
        {
            "method": method,
            "program": name,
            "seconds": statistics.median(seconds for seconds, _ in each),
            "peak anonymous MB": max(memory for _, memory in each) / 1e6,
        }
        for name, each in found.items()
    ]


def write_file(folder: Path, method: str) -> Path:
    content: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(folder / name), "parameters": METHODS[method]} for name in EXPERTS],
        "dtype": "bfloat16",
    }
    if method == "ties":
        content["base_model"] = str(folder / "base")
    file = folder / f"{method}.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of a process, and the bytes of its anonymous memory at the peak."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(SAMPLED)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} of {' '.join(command)}")
    return seconds, peak


def anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int((status.partition("RssAnon:")[2].split() or ["0"])[0]) * 1024


if __name__ == "__main__":
    main()
