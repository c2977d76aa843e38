"""What every benchmark shares: the machine in words, interleaved timing, and how results are printed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """The machine and the libraries that the numbers belong to."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def interleaved(sides: Mapping[str, Callable[[], object]], runs: int, clock: str = "wall") -> dict[str, float]:
    """Median seconds of each side; they take turns, so that what else the machine does falls on all of them.

    Args:
        clock: `processor` counts the time of this process alone, over all its threads: for one thread on a CPU that
            others use as well.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            started = now()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(now() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, no table")
    parser.add_argument("--runs", type=int, default=5, help="runs per side, of which the median counts (default 5)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="seconds of what (default wall)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    return parser


def report(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print the document with the machine and the rows: as JSON, or as a table with the machine above it."""
    whole = {"schema": 1, **document, "machine": describe(), "rows": list(rows)}
    if as_json:
        print(json.dumps(whole, indent=2))
        return
    print(in_words(whole["machine"]))
    print(table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in columns of equal width."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
    return "\n".join(lines)


def progress(text: str) -> None:
    """To standard error: standard output is for the result alone."""
    print(text, file=sys.stderr, flush=True)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
