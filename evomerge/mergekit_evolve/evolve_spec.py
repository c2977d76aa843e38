"""A configuration and the options of mergekit-evolve's command as a search.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.mergekit_evolve.evolve_file import METHODS_WITH_BASE, EvolveFile, Remark
from evomerge.mergekit_evolve.evolve_models import EvolveModels
from evomerge.mergekit_evolve.evolve_space import LIMIT

DTYPE = "bfloat16"  # in which mergekit-evolve always merges


@dataclass(frozen=True, kw_only=True)
class EvolveOptions:
    """The options of mergekit-evolve's command that have a meaning for a search, with its defaults.

    Attributes:
        max_fevals: merges that are scored.
        sigma0: first step of CMA-ES, in the units of the genes.
        population: merges of one generation; None: chosen by CMA-ES.
        gpus: GPUs over all nodes; None: all.
        timeout: seconds after which it ends.
        task_paths: folders of lm-eval tasks.
        strategy, vllm, in_memory, batch_size: how it evaluates; what they mean here is said.
        allow: permissions as in a search.yaml.
    """

    max_fevals: int = 100
    sigma0: float = 1 / 6
    population: int | None = None
    random_seed: int = 0
    gpus: int | None = None
    timeout: float | None = None
    task_paths: tuple[Path, ...] = ()
    strategy: str | None = None
    vllm: bool = False
    in_memory: bool = False
    batch_size: str | None = None
    allow: tuple[str, ...] = ()


def spec_content(
    file: EvolveFile, options: EvolveOptions, models: EvolveModels, name: str
) -> tuple[dict[str, Any], tuple[Remark, ...]]:
    """The content of search.yaml beside space.yaml and the folder `evaluator`, and remarks on what is in it alone."""
    sampler: dict[str, Any] = {"name": "cma", "sigma0": round(options.sigma0 / (2 * LIMIT), 6)}
    if options.population is not None:
        sampler["popsize"] = options.population
    budget: dict[str, Any] = {"trials": options.max_fevals}
    if options.timeout is not None:
        budget["hours"] = options.timeout / 3600
    content: dict[str, Any] = {
        "name": name,
        "sources": list(models.sources),
        "space": "space.yaml",
        "evaluator": "evaluator",
        "objective": {"aggregate": "weighted_mean"},
        "sampler": sampler,
        "budget": budget,
    }
    if options.gpus is not None:
        content["workers"] = {"count": options.gpus, "gpus": 1}
    if _has_no_base(file):
        content["baselines"] = []
    if file.tokenizer_source is not None:
        content["tokenizer"] = "base"
    content |= {"dtype": DTYPE, "seed": options.random_seed}
    if options.allow:
        content["allow"] = list(options.allow)
    return content, tuple(_remarks(file, options))


def _has_no_base(file: EvolveFile) -> bool:
    """Whether no model is what the others are fine-tunes of, as baselines of task vectors need."""
    return file.base_model is None and file.method not in METHODS_WITH_BASE


def _remarks(file: EvolveFile, options: EvolveOptions) -> Iterator[Remark]:
    if file.random_init:
        yield Remark(
            kind="left out",
            line=file.line("random_init"),
            text="the search begins at weights 1/n and densities 1, not at random",
        )
    yield _option("same", f"--max-fevals: {options.max_fevals} merges are scored; mergekit may score half as many more")
    yield _option("same", f"--sigma0: {options.sigma0:g} is {options.sigma0 / (2 * LIMIT):.4g} of the range of a gene")
    yield _option(
        "differs",
        "CMA-ES proposes a merge as soon as a worker is free, and restarts where it has converged; mergekit waits for "
        "generations and ends (sampler: generation_mode: sync, restarts: none)",
    )
    yield _option(
        "differs", f"--random-seed: {options.random_seed} decides proposals too; mergekit's are different in every run"
    )
    if options.timeout is not None:
        yield _option("same", f"--timeout: the search ends after {options.timeout / 3600:g} hours; a verdict follows")
    if options.gpus is not None:
        yield _option("same", f"--num-gpus: {options.gpus} workers with one GPU each")
    yield from _of_evaluation(options)
    if _has_no_base(file):
        yield _option("differs", "there are no baselines, which would need the base that the models are fine-tunes of")
    else:
        yield _option("differs", "baselines are scored beside the search (`baselines: []` leaves them out)")


def _of_evaluation(options: EvolveOptions) -> Iterator[Remark]:
    if options.strategy is not None or options.in_memory:
        given = "--in-memory" if options.strategy is None else f"--strategy {options.strategy}"
        yield _option("left out", f"{given}: every worker merges in its memory and scores there; none waits for others")
    if options.vllm:
        yield _option("left out", "--vllm: transformers scores, with the numbers of lm-eval's hf backend")
    if options.batch_size is not None:
        yield _option("left out", "--batch-size: it is found once and stored, and does not change what is scored")


def _option(kind: Any, text: str) -> Remark:
    return Remark(kind=kind, line=None, text=text)
