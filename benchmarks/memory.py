"""What workers hold in memory on a 100 M model: sources, one merged copy, activations; the sources are shared.

Each worker is a process of its own that opens a bank over the same files, materialises candidates and passes a batch
through each. From the growth since its libraries were loaded: *peak* and *resident* count shared pages in every worker,
*proportional* divides them among the workers that map them. *Activations* are what the same batch needs in a process
that holds nothing but one model. Sources are in bfloat16, the merged copy in float32, as a CPU computes.
`ratio` is the peak of one worker over the sum of sources, merged copy and activations.
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
DTYPE = "float32"  # of what is merged: a CPU without bfloat16 arithmetic takes minutes for a batch
BATCH = (8, 128)  # sequences, tokens
CANDIDATES = ({"density": 0.2}, {"density": 0.4})


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, help="workers beside each other (default 4)")
    parser.add_argument("--folder", type=Path, help="where the models are kept for the next run (default: deleted)")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work)
        return
    if given.plain is not None:
        print(measure_activations(given.plain))
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    try:
        make_models(folder, LLAMA)
        make_models(folder / "tiny", TINY)
        command = [sys.executable, __file__, "--plain", str(folder)]
        activations = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        rows = [measure(folder, count, activations) for count in (1, given.workers)]
    finally:
        if given.folder is None:
            shutil.rmtree(folder)
    report({"benchmark": "memory", "ratio": rows[0]["peak / expected"]}, rows, given.json)


def make_models(folder: Path, sizes: dict[str, int]) -> None:
    """Base and experts as Llama checkpoints in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, num_attention_heads=12, tie_word_embeddings=True)
    for seed, name in enumerate(("base", *EXPERTS)):
        if not (folder / name / "model.safetensors").exists():
            progress(f"making {name}")
            torch.manual_seed(seed)
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / name)


def measure(folder: Path, count: int, activations: int) -> dict[str, Any]:
    """The row of so many workers: the largest of each figure over them."""
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
    resident, peak = (max(each[name] for each in found) for name in ("resident", "peak"))
    return {
        "workers": count,
        "sources MB": sources / 1e6,
        "merged copy MB": merged / 1e6,
        "activations MB": activations / 1e6,
        "peak MB": peak / 1e6,
        "peak / expected": peak / (sources + merged + activations),
        "resident MB": resident / 1e6,
        "proportional MB, all workers": proportional / 1e6,
        "proportional / sources and copies": proportional / (sources + count * merged),
        "tables MB": max(each["tables"] for each in found) / 1e6,
    }


def work(folder: Path) -> None:
    """One worker: merges, then measures itself when it is told to, then ends when it is told to."""
    torch.set_num_threads(1)
    merge_candidates(folder / "tiny")  # loads every library that a worker loads
    before = own_memory()
    bank = merge_candidates(folder)
    print("merged", flush=True)
    input()
    after = own_memory()
    parameters = bank.base.catalogue.parameters
    grown = {name: after[name] - before[name] for name in before}
    print(
        json.dumps({**grown, "sources": parameters * 5 * 2, "merged": parameters * 4, "tables": bank.table_bytes}),
        flush=True,
    )
    input()


def merge_candidates(folder: Path) -> WeightBank:
    """A bank over the models of the folder, with two candidates merged and run one after the other."""
    refs = [ModelRef(name, str(folder / name), fingerprint=name) for name in ("base", *EXPERTS)]
    bank = open_bank(refs[0], refs[1:], dtype=DTYPE, device="cpu")
    tensors = tuple(entry.name for entry in bank.base.catalogue.mergeable)
    for parameters in CANDIDATES:
        rule = Rule(
            tensors=tensors,
            method="ties",
            sources=EXPERTS,
            parameters=resolve_parameters("ties", parameters, 4),
            options=resolve_options("ties", {}),
        )
        run_batch(bank.materialize(Recipe(base=refs[0], sources=tuple(refs[1:]), rules=(rule,), dtype=DTYPE)))
    return bank


def measure_activations(folder: Path) -> int:
    """Bytes that a batch takes beside the weights of one model."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    run_batch(AutoModelForCausalLM.from_pretrained(folder / "tiny" / "base", dtype=DTYPE))
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=DTYPE)
    for tensor in model.parameters():  # loaded lazily from the file: touched, so that it does not count below
        tensor.data = tensor.data.clone()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = own_memory()["resident"]
    run_batch(model)
    return own_memory()["peak"] - before


def run_batch(model: Any) -> None:
    """One forward pass, logits of the last token only."""
    tokens = torch.arange(BATCH[0] * BATCH[1]).view(BATCH) % model.config.vocab_size
    with torch.inference_mode():
        model(tokens, logits_to_keep=1, use_cache=False)


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
