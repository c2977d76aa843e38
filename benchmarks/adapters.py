"""Merges of eight LoRA adapters of rank 16 on a 100 M model: peak memory, and seconds in full and in core space.

Memory: a worker in a process of its own opens the models and materialises candidates, with kernels there. Its peak
since its libraries were loaded is compared with the base, the live model and the adapters. It is sampled, and pages of
files count once, however often they are mapped.

Time, of TIES candidates on one thread: *full* merges the weights, for which every adapter's tensors are made anew;
*core* is a whole candidate in core space; *coordinates* is its arithmetic alone, before the product that the weights
are made of. `ratio` is full over core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import arguments, interleaved, progress, report
from memory import LLAMA, TINY, own_memory

from evomerge.bank import WeightBank, open_bank
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.passes.fused_rule import kinds
from evomerge.passes.kernels import Kernels
from evomerge.recipe import MergeSpace, ModelRef, Recipe, Rule
from evomerge.tensors.plans import plan_rule

COUNT, RANK = 8, 16
NAMES = tuple(f"adapter{number}" for number in range(COUNT))
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPE = "float32"
MEGABYTES = ("base", "live", "adapters", "peak")
CANDIDATES: dict[str, tuple[str, MergeSpace]] = {
    "task arithmetic, full": ("task_arithmetic", "full"),
    "TIES, core": ("ties", "core"),
}


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the models are kept for the next run (default: deleted)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(Path(given.work[0]), given.work[1])
        return
    torch.set_num_threads(given.threads)
    folder = given.folder or Path(tempfile.mkdtemp())
    try:
        make_models(folder, LLAMA)
        make_models(folder / "tiny", TINY)
        progress("compiling")
        compile_kernels(folder)
        rows = [measure_memory(folder, name) for name in CANDIDATES]
        seconds = measure_time(folder, given.runs, given.clock)
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    rows += [row(f"TIES, {name}", seconds=value) for name, value in seconds.items()]
    extra = {"full / coordinates": seconds["full"] / seconds["coordinates"]}
    report({"benchmark": "adapters", "ratio": seconds["full"] / seconds["core"], **extra}, rows, given.json)


def make_models(folder: Path, sizes: dict[str, int]) -> None:
    """A base in bfloat16 and adapters of it in float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / NAMES[-1] / "adapter_model.safetensors").exists():
        return
    progress("making models")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=12, tie_word_embeddings=True))
    model.to(torch.bfloat16).save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES))
    for name in NAMES:
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.02)
        adapted.save_pretrained(folder / name)


def measure_memory(folder: Path, candidate: str) -> dict[str, Any]:
    """The row of one worker."""
    command = [sys.executable, __file__, "--work", str(folder), candidate]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    expected = sum(found[name] for name in ("base", "live", "adapters"))
    return row(candidate, **{name: found[name] / 1e6 for name in MEGABYTES}, share=found["peak"] / expected)


def row(candidate: str, **figures: float) -> dict[str, Any]:
    """One row of the table, without the figures that it does not have."""
    sizes = {f"{name} MB": figures.get(name) for name in MEGABYTES}
    return {
        "candidate": candidate,
        **sizes,
        "peak / expected": figures.get("share"),
        "seconds": figures.get("seconds"),
    }


def work(folder: Path, candidate: str) -> None:
    """One worker, which prints its figures."""
    torch.set_num_threads(1)
    merged(folder / "tiny", candidate)  # loads every library that a worker loads
    with sampled_memory() as samples:
        bank = merged(folder, candidate)
    parameters = bank.base.catalogue.parameters
    files = [folder / name / "adapter_model.safetensors" for name in NAMES]
    figures = {"base": 2 * parameters, "live": 4 * parameters, "adapters": sum(file.stat().st_size for file in files)}
    print(json.dumps({**figures, "peak": max(samples) - samples[0]}), flush=True)


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Bytes of this process, from before the body until its end."""
    samples, ended = [own_memory()["proportional"]], threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            samples.append(own_memory()["proportional"])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def compile_kernels(folder: Path) -> None:
    """Compile the passes of the candidates in full space: workers find them on disk."""
    bank = opened(folder)
    for method in ("task_arithmetic", "ties"):
        recipe = recipe_of(bank, method, "full", share=0.5)
        tensors = bank.rule_tensors(recipe.rules[0], recipe)
        plan = plan_rule(method, tensors)
        assert plan is not None
        for kind in set((kinds(tensors, plan, torch.float32) or {}).values()):
            Kernels(torch.device("cpu")).compile(kind)


def merged(folder: Path, candidate: str) -> WeightBank:
    """A bank over the models of the folder, with two candidates written."""
    bank = opened(folder)
    for share in (0.5, 1.0):
        bank.materialize(recipe_of(bank, *CANDIDATES[candidate], share=share))
    return bank


def measure_time(folder: Path, runs: int, clock: str) -> dict[str, float]:
    """Median seconds of the candidates of one worker, after one of each."""
    bank, count = opened(folder), iter(range(10**6))

    def candidate(space: MergeSpace) -> Recipe:
        return recipe_of(bank, "ties", space, share=0.5 + next(count) / 1000)

    def coordinates() -> None:
        recipe = candidate("core")
        (rule,) = recipe.rules
        for _ in bank.core_merges.coordinates(rule, bank.rule_tensors(rule, recipe)):
            pass

    sides = {
        "full": lambda: bank.materialize(candidate("full")),
        "core": lambda: bank.materialize(candidate("core")),
        "coordinates": coordinates,
    }
    progress("making tables")
    interleaved(sides, 1)
    return interleaved(sides, runs, clock)


def opened(folder: Path) -> WeightBank:
    refs = [ModelRef(name, str(folder / name), fingerprint=name) for name in ("base", *NAMES)]
    return open_bank(refs[0], refs[1:], dtype=DTYPE, device="cpu")


def recipe_of(bank: WeightBank, method: str, space: MergeSpace, *, share: float) -> Recipe:
    """One rule over all tensors."""
    parameters: dict[str, Any] = {"weight": share} | ({"density": share / 2} if method == "ties" else {})
    rule = Rule(
        tensors=tuple(entry.name for entry in bank.base.catalogue.mergeable),
        method=method,
        sources=NAMES,
        parameters=resolve_parameters(method, parameters, COUNT),
        options=resolve_options(method, {}),
    )
    refs = tuple(ModelRef(name, name, fingerprint=name) for name in NAMES)
    return Recipe(base=bank.base.ref, sources=refs, rules=(rule,), dtype=DTYPE, space=space)


if __name__ == "__main__":
    main()
