"""DAM per step, beside a plain implementation that lets autograd go through the merge.

    python benchmarks/dam.py [--json] [--steps 5] [--cases 32:float32 32:bfloat16 128:float32]

A case is the number of tokens of each text, and the dtype of the sources.

Both sides train the same coefficients of the same randomly initialised Llama-like model on the same tokens, with one
thread, KL and similarity losses, and the sources as teachers on the fly:

* ours: `evomerge.training.train_dam`, with MoFO and the published settings;
* plain: for every tensor sum_i c_i * W_i in torch operations that autograd records, `functional_call` on the result for
  each source in turn, the losses summed, one backward pass, and Adam.

Each side runs in a process of its own, and the two take turns step by step, so that whatever else the machine does hits
both alike.

Time: the median over the steps, the first left out, of the processor seconds (user and system) of the process, which
has one thread: a busy machine changes them least.

Memory: the peak of RssAnon, read from /proc by the parent every millisecond during the steps, less what the process had
after its imports. The sources are memory-mapped files on both sides and shared with all processes, so that they are not
in RssAnon; the last column adds their bytes to both sides.

The targets are a time ratio of at most 0.8 and a memory ratio of at most 0.6. The longer the texts, the more
of the time is matrix products that both sides make, and the nearer both ratios come to 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from machine import progress, report

CASES = ((32, "float32"), (32, "bfloat16"), (128, "float32"))
SOURCES = ("one", "two", "three")
LEARNING_RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured, at least 5")
    parser.add_argument("--cases", type=_case, nargs="+", default=CASES, help="LENGTH:STORED, tokens and a dtype")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--dtype", default="float32", help="of the live model")
    given = vars(parser.parse_args())
    if given["steps"] < 5:
        parser.error("a median needs at least 5 steps")
    rows = []
    for length, stored in given["cases"]:
        progress(f"{length} tokens, sources in {stored}")
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(Path(folder), {**given, "length": length, "stored": stored}))
    settings = {key: given[key] for key in ("steps", "layers", "width", "vocabulary", "dtype")}
    document = {"benchmark": "dam", "ratio": rows[0]["time ratio"], "sources": len(SOURCES), **settings}
    report(document, rows, given["json"])


def _case(text: str) -> tuple[int, str]:
    length, _, stored = text.partition(":")
    return int(length), stored or "float32"


def compare(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=write_sources, args=(folder, options))
    writer.start()
    writer.join()
    sides = {name: Side(context, name, folder, options) for name in ("ours", "plain")}
    for number in range(options["steps"] + 1):
        for side in sides.values():
            side.step(measured=number > 0)
    ours, plain = (side.result() for side in sides.values())
    sources = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "tokens": options["length"],
        "sources": options["stored"],
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

    def __init__(self, context: Any, name: str, folder: Path, options: dict[str, Any]) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, folder, options), daemon=True)
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


def serve(connection: Connection, name: str, folder: Path, options: dict[str, Any]) -> None:
    """A side's process: says what memory it has after its imports, and then makes a step whenever it is told to."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401  what both sides import, whichever of them needs it

    import evomerge.training  # noqa: F401

    torch.set_num_threads(1)
    connection.send(anonymous_bytes(os.getpid()))
    steps = {"ours": our_steps, "plain": plain_steps}[name](folder, options)
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
    for index, name in enumerate(SOURCES):
        generator = torch.Generator().manual_seed(index)
        tensors = {
            key: (tensor + 0.01 * torch.randn(tensor.shape, generator=generator)).to(getattr(torch, options["stored"]))
            for key, tensor in model.state_dict().items()
        }
        save_file(tensors, folder / f"{name}.safetensors")


def mapped_sources(folder: Path) -> dict[str, dict[str, Any]]:
    from safetensors import safe_open

    files = {name: safe_open(folder / f"{name}.safetensors", framework="pt") for name in SOURCES}
    return {name: {key: file.get_tensor(key) for key in file.keys()} for name, file in files.items()}  # noqa: SIM118


def token_ids(options: dict[str, Any], source: int, step: int) -> tuple[int, ...]:
    import torch

    generator = torch.Generator().manual_seed(1000 * source + step)
    return tuple(torch.randint(0, options["vocabulary"], (options["length"],), generator=generator).tolist())


def our_steps(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    from evomerge.evaluation.evaluator import CalibrationText
    from evomerge.recipe import ModelRef, Recipe, Rule
    from evomerge.training import DamSettings, train_dam

    model = live_model(options)
    live = model.state_dict(keep_vars=True)
    weights = mapped_sources(folder)
    count = options["steps"] + 1
    refs = tuple(ModelRef(name, name, fingerprint=name) for name in SOURCES)
    rule = Rule(
        tensors=tuple(live),
        method="linear",
        sources=SOURCES,
        parameters={"weight": (1.0,) * len(SOURCES)},
        options={"normalize": True},
    )
    training = train_dam(
        model=model,
        live=live,
        weights=weights,
        texts={
            name: [CalibrationText(token_ids(options, source, step), 0) for step in range(count)]
            for source, name in enumerate(SOURCES)
        },
        initial=Recipe(base=refs[0], sources=refs, rules=(rule,), dtype=options["dtype"]),
        settings=DamSettings(measured_items=1, learning_rate=LEARNING_RATE),
        seed=0,
        files=folder,
    )
    for _ in training:
        yield


def plain_steps(folder: Path, options: dict[str, Any]) -> Iterator[None]:
    import torch
    from torch.func import functional_call

    from evomerge.training.dam import kl_loss, similarity

    model = live_model(options)
    weights = list(mapped_sources(folder).values())
    dtype = getattr(torch, options["dtype"])
    linear = [key for key, tensor in weights[0].items() if tensor.ndim == 2 and key != "model.embed_tokens.weight"]
    frozen = {
        key: (sum(source[key].float() for source in weights) / len(weights)).to(dtype)
        for key in weights[0]
        if key not in linear
    }
    coefficients = {
        key: torch.full((len(weights), weights[0][key].shape[1]), 1 / len(weights), requires_grad=True)
        for key in linear
    }
    for parameter in model.parameters():
        parameter.data = torch.empty(0)  # functional_call gives the model all of its weights
    optimizer = torch.optim.Adam(coefficients.values(), lr=LEARNING_RATE)
    for step in range(options["steps"] + 1):
        merged = {
            key: sum(c * source[key] for c, source in zip(coefficients[key], weights, strict=True)).to(dtype)
            for key in linear
        }
        loss = similarity(coefficients.values())
        for index, source in enumerate(weights):
            tokens = torch.tensor([token_ids(options, index, step)])
            arguments = {"input_ids": tokens, "use_cache": False}
            with torch.no_grad():
                own = {key: tensor.to(dtype) for key, tensor in source.items()}
                teacher = functional_call(model, own, (), arguments).logits
            student = functional_call(model, frozen | merged, (), arguments).logits
            loss = loss + kl_loss(student, teacher, torch.ones_like(tokens))
        del merged, student, teacher, own
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(coefficients.values(), 1.0)
        optimizer.step()
        del loss
        yield


if __name__ == "__main__":
    main()
