"""What workers hold in memory on a 100 M model: sources, one merged copy, and little else; the sources are shared.

Each worker is a process of its own that opens a bank over the same files and materialises candidates. From the growth
since its libraries were loaded: *resident* counts shared pages in every worker, *proportional* divides them among the
workers that map them. `ratio` is the resident growth of one worker over the sum of sources and merged copy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import arguments, progress, report

from evomerge.bank import WeightBank, open_bank
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule

EXPERTS = ("one", "two", "three", "four")
LLAMA = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32_000}
TINY = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 320}
CANDIDATES = ({"density": 0.2}, {"density": 0.4})


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="workers beside each other (default 4)")
    parser.add_argument("--folder", type=Path, help="where the models are kept for the next run (default: deleted)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work)
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    try:
        make_models(folder, LLAMA)
        make_models(folder / "tiny", TINY)
        rows = [row for count in (1, given.workers) for row in measure(folder, count)]
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    report({"benchmark": "memory", "ratio": rows[0]["resident / expected"]}, rows, given.json)


def make_models(folder: Path, sizes: dict[str, int]) -> None:
    """Base and experts as Llama checkpoints in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, num_attention_heads=12, tie_word_embeddings=True)
    for seed, name in enumerate(("base", *EXPERTS)):
        if not (folder / name / "model.safetensors").exists():
            progress(f"making {name}")
            torch.manual_seed(seed)
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / name)


def measure(folder: Path, count: int) -> list[dict[str, Any]]:
    """One row per number of workers: the largest of each figure over the workers."""
    command = [sys.executable, __file__, "--work", str(folder)]
    progress(f"{count} workers")
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for worker in workers:  # all have merged before any is measured
        assert worker.stdout is not None
        if worker.stdout.readline() != "merged\n":
            raise SystemExit("a worker failed")
    found = []
    for worker in workers:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("measure\n")
        worker.stdin.flush()
        found.append(json.loads(worker.stdout.readline()))
    for worker in workers:
        worker.communicate("done\n")
    sources, merged = found[0]["sources"], found[0]["merged"]
    proportional = sum(each["proportional"] for each in found)
    return [
        {
            "workers": count,
            "sources MB": sources / 1e6,
            "merged copy MB": merged / 1e6,
            "resident MB": max(each["resident"] for each in found) / 1e6,
            "resident / expected": max(each["resident"] for each in found) / (sources + merged),
            "peak MB": max(each["peak"] for each in found) / 1e6,
            "proportional MB, all workers": proportional / 1e6,
            "proportional / expected": proportional / (sources + count * merged),
            "tables MB": max(each["tables"] for each in found) / 1e6,
        }
    ]


def work(folder: Path) -> None:
    """One worker: merges, then measures itself when it is told to, then ends when it is told to."""
    torch.set_num_threads(1)
    merge_candidates(folder / "tiny")  # loads every library that a worker loads
    before = own_memory()
    bank = merge_candidates(folder)
    print("merged", flush=True)
    input()
    after = own_memory()
    parameters_bytes = bank.base.catalogue.parameters * 2
    grown = {name: after[name] - before[name] for name in before}
    print(
        json.dumps({**grown, "sources": parameters_bytes * 5, "merged": parameters_bytes, "tables": bank.table_bytes}),
        flush=True,
    )
    input()


def merge_candidates(folder: Path) -> WeightBank:
    """A bank over the models of the folder, with two candidates merged one after the other."""
    refs = [ModelRef(name, str(folder / name), fingerprint=name) for name in ("base", *EXPERTS)]
    bank = open_bank(refs[0], refs[1:], dtype="bfloat16", device="cpu")
    tensors = tuple(entry.name for entry in bank.base.catalogue.mergeable)
    for parameters in CANDIDATES:
        rule = Rule(tensors, "ties", EXPERTS, resolve_parameters("ties", parameters, 4), resolve_options("ties", {}))
        bank.materialize(Recipe(refs[0], tuple(refs[1:]), (rule,), "bfloat16"))
    return bank


def own_memory() -> dict[str, int]:
    """Bytes of this process by the kernel's own count."""
    lines = [
        *Path("/proc/self/smaps_rollup").read_text().splitlines(),
        *Path("/proc/self/status").read_text().splitlines(),
    ]
    found = {line.split(":")[0]: line.split(":")[1].split()[0] for line in lines if line.endswith("kB")}
    return {
        "resident": int(found["Rss"]) * 1024,
        "proportional": int(found["Pss"]) * 1024,
        "peak": int(found["VmHWM"]) * 1024,
    }


if __name__ == "__main__":
    main()
