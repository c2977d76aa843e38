"""A training step of evomerge beside a plain one: each side in a process of its own, and the two take turns.

Time is the median over the steps, the first left out, of the processor seconds (user and system) of the process, which
has one thread: a busy machine changes them least. Memory is the peak of RssAnon, read from /proc by the parent every
millisecond during the steps, less what the process had after its imports. The sources are memory-mapped files on both
sides and shared with all processes, so that they are not in RssAnon.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from machine import progress, report

SOURCES = ("one", "two", "three")

Case = Mapping[str, Any]
"""Options of one row of a table."""

Steps = Callable[[Path, dict[str, Any]], Iterator[None]]
"""A side: (folder of the sources, options) -> steps. A function of a module, which another process imports."""


def run(
    name: str,
    description: str,
    *,
    models: Sequence[str],
    cases: Sequence[Case],
    case: Callable[[str], Case],
    our_steps: Steps,
    plain_steps: Steps,
) -> None:
    """The command line of a benchmark.

    Args:
        models: that are merged, of which there are files.
        cases: of the table.
        case: reads one from the command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured, at least 5")
    parser.add_argument("--cases", type=case, nargs="+", default=cases, help="LENGTH:KIND, tokens of a text and a kind")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--dtype", default="float32", help="of the live model")
    given = vars(parser.parse_args())
    if given["steps"] < 5:
        parser.error("a median needs at least 5 steps")
    rows = []
    for each in given["cases"]:
        progress(", ".join(f"{key} {value}" for key, value in each.items()))
        with tempfile.TemporaryDirectory() as folder:
            options = {"stored": "float32", "models": models, **given, **each}
            rows.append({**each, **compare(Path(folder), options, our_steps, plain_steps)})
    settings = {key: given[key] for key in ("steps", "layers", "width", "vocabulary", "dtype")}
    document = {"benchmark": name, "ratio": rows[0]["time ratio"], "sources": len(SOURCES), **settings}
    report(document, rows, given["json"])


def compare(folder: Path, options: dict[str, Any], our_steps: Steps, plain_steps: Steps) -> dict[str, Any]:
    """The figures of one row: seconds and bytes of both sides."""
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=write_sources, args=(folder, options))
    writer.start()
    writer.join()
    sides = [Side(context, steps, folder, options) for steps in (our_steps, plain_steps)]
    for number in range(options["steps"] + 1):
        for side in sides:
            side.step(measured=number > 0)
    ours, plain = (side.result() for side in sides)
    sources = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "ours s": ours["seconds"],
        "plain s": plain["seconds"],
        "time ratio": ours["seconds"] / plain["seconds"],
        "ours MB": ours["bytes"] / 1e6,
        "plain MB": plain["bytes"] / 1e6,
        "memory ratio": ours["bytes"] / plain["bytes"],
        "with sources": (ours["bytes"] + sources) / (plain["bytes"] + sources),
    }


class Side:
    """One of the two implementations in its own process."""

    def __init__(self, context: Any, steps: Steps, folder: Path, options: dict[str, Any]) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, steps, folder, options), daemon=True)
        self._process.start()
        theirs.close()  # so that the death of the process is an end of file here
        self._seconds: list[float] = []
        self._peak = 0
        self._before = int(self._connection.recv())

    def step(self, *, measured: bool) -> None:
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,))
        watcher.start()
        self._connection.send("step")
        seconds = self._connection.recv()
        done.set()
        watcher.join()
        if measured:
            self._seconds.append(seconds)

    def result(self) -> dict[str, float]:
        self._connection.send("stop")
        self._process.join()
        return {"seconds": statistics.median(self._seconds), "bytes": self._peak - self._before}

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(0.001):
            self._peak = max(self._peak, anonymous_bytes(self._process.pid))


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("this system's /proc does not say RssAnon; the benchmark needs Linux")


def serve(connection: Connection, make: Steps, folder: Path, options: dict[str, Any]) -> None:
    """A side's process: says what memory it has after its imports, and then makes a step whenever it is told to."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401  what both sides import, whichever of them needs it

    import evomerge.trainers  # noqa: F401

    torch.set_num_threads(1)
    connection.send(anonymous_bytes(os.getpid()))
    steps = make(folder, options)
    while connection.recv() == "step":
        started = time.process_time()
        next(steps)
        connection.send(time.process_time() - started)


def live_model(options: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=options["vocabulary"],
        hidden_size=options["width"],
        intermediate_size=3 * options["width"],
        num_hidden_layers=options["layers"],
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, options["dtype"])).eval()
    return model.requires_grad_(False)


def write_sources(folder: Path, options: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import save_file

    model = live_model(options)
    for index, name in enumerate(options["models"]):
        generator = torch.Generator().manual_seed(index)
        tensors = {
            key: (tensor + 0.01 * torch.randn(tensor.shape, generator=generator)).to(getattr(torch, options["stored"]))
            for key, tensor in model.state_dict().items()
        }
        save_file(tensors, folder / f"{name}.safetensors")


def mapped_sources(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    from safetensors import safe_open

    files = {name: safe_open(folder / f"{name}.safetensors", framework="pt") for name in names}
    return {name: {key: file.get_tensor(key) for key in file.keys()} for name, file in files.items()}  # noqa: SIM118


def token_ids(options: dict[str, Any], source: int, step: int) -> tuple[int, ...]:
    import torch

    generator = torch.Generator().manual_seed(1000 * source + step)
    return tuple(torch.randint(0, options["vocabulary"], (options["length"],), generator=generator).tolist())
