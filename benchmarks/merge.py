"""How fast a candidate is materialised: compiled, against a plain implementation and against copying memory.

*plain* is eager PyTorch in float32, tensor by tensor, with `torch.sort` for each source and tensor. *bandwidth* is
bytes read plus bytes written per second; for the copy, which copies the output, likewise. `ratio` is that of TIES,
plain to fused, on the largest model. Sources are randomly initialised: the speed of a merge does not depend on values.

*first* is the first candidate of a worker on a machine that has no threshold tables of these sources, *next worker* the
first one of a worker that finds them on disk, *warm* every later one; all in float32, with kernels there. *Allowed*
are three times a warm one and 3 s per 100 M elements and source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import CLOCKS, arguments, interleaved, progress, report, table
from torch import Tensor

from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.passes.fused_rule import FusedRule, SourceCache, fuse_rule
from evomerge.passes.kernels import Kernels
from evomerge.passes.magnitude_sorting import this_machines_loops
from evomerge.passes.table_store import TableStore
from evomerge.passes.threshold_tables import Contents, ThresholdTables
from evomerge.tensors.order_statistics import Thresholds

EXPERTS = 4
DENSITY = 0.2

# Layers, width, width of keys and values, width of the mlp, vocabulary; the last one is SmolLM2-135M.
SIZES = {
    "toy": (4, 64, 64, 176, 64),
    "100M": (12, 768, 768, 2048, 32_000),
    "135M": (30, 576, 192, 1536, 49_152),
}

# First candidates: method, parameters, options.
COLD: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ties": ("ties", {"density": DENSITY}, {"trim_scope": "tensor"}),
    "dare_ties": ("dare_ties", {"density": DENSITY, "drop_rate": 0.5}, {"trim_scope": "tensor"}),
    "pcb": ("pcb", {"density": 0.1}, {}),
}
COLD_SOURCES = 3
ALLOWED_WARM, ALLOWED_SECONDS = 3, 3.0  # times a warm candidate, and per 100 M elements and source

# What is timed: method and options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties", {"trim_scope": "tensor"}),
    "dare_linear": ("dare_linear", {}),
    "dare_ties": ("dare_ties", {"trim_scope": "tensor", "dare_ties": "no_trim"}),
    "pcb": ("pcb", {}),
    "pcb vision_es": ("pcb", {"variant": "vision_es"}),
}


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["toy", "100M"])
    parser.add_argument("--cold", choices=list(SIZES), default="135M", help="size for first candidates (default 135M)")
    parser.add_argument("--only-cold", action="store_true", help="first candidates alone")
    parser.add_argument("--no-plain", action="store_true", help="only against the copy: plain takes minutes at 100M")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels = Kernels(device)
    first = first_candidates(given.cold, kernels, given.runs, given.clock)
    if given.only_cold:
        report({"benchmark": "merge", "clock": given.clock, **first}, first["first candidates"], given.json)
        return
    rows = []
    for size in given.sizes:
        base, sources = models(size, device)
        for case in CASES:
            progress(f"{size}: {case}")
            timed = partial(interleaved, runs=given.runs, clock=given.clock)
            rows.append({"model": size, **measure(case, base, sources, kernels, timed, not given.no_plain)})
    ties = [row for row in rows if row["method"] == "ties"][-1]
    report({"benchmark": "merge", "clock": given.clock, "ratio": ties["plain / fused"], **first}, rows, given.json)
    if not given.json:
        print(table(first["first candidates"]))


def first_candidates(size: str, kernels: Kernels, runs: int, clock: str) -> dict[str, Any]:
    """A row per method on one size."""
    base, sources = models(size, kernels.device, torch.float32, COLD_SOURCES)
    elements = sum(map(Tensor.numel, base.values()))
    live = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    this_machines_loops()  # once per machine, like the kernels
    now = CLOCKS[clock]
    rows: list[dict[str, Any]] = []
    warm_sides: dict[str, Callable[[], object]] = {}
    for case in COLD:
        progress(f"{size}: first candidate of {case}")
        seconds = []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2 if METHODS[COLD[case][0]].sorts_magnitudes else 1):
                tables = stored_tables(base, sources, Path(folder))
                candidate = cold_side(case, base, sources, kernels, tables)
                started = now()
                candidate(live)
                tables.save()
                seconds.append(now() - started)
            warm_sides[case] = partial(candidate, live)
        rows.append({"model": size, "method": case, "first s": seconds[0], "next worker s": [*seconds, None][1]})
    warm = interleaved(warm_sides, runs=runs, clock=clock)
    for row in rows:
        row["warm s"] = warm[row["method"]]
        row["allowed s"] = ALLOWED_WARM * row["warm s"] + ALLOWED_SECONDS * elements / 1e8 * COLD_SOURCES
        row["first / allowed"] = row["first s"] / row["allowed s"]
        row["warm / TIES"] = row["warm s"] / warm["ties"]
    return {"first candidates": rows}


def stored_tables(base: dict[str, Tensor], sources: list[dict[str, Tensor]], folder: Path) -> ThresholdTables:
    names = tuple(map(str, range(len(sources))))
    return ThresholdTables(base, sources, Contents(base="base", sources=names, store=TableStore(folder)))


def cold_side(
    case: str, base: dict[str, Tensor], sources: list[dict[str, Tensor]], kernels: Kernels, tables: ThresholdTables
) -> Callable[[dict[str, Tensor]], None]:
    """Writes a candidate of a worker that has made none yet, eagerly where the method has no formula."""
    method, parameters, options = COLD[case]
    cache, waiting = SourceCache(), _Waiting(kernels)

    def fused(
        names: tuple[str, ...], thresholds: Thresholds, cache: SourceCache
    ) -> tuple[RuleTensors, FusedRule | None]:
        tensors = RuleTensors(
            names=names,
            base=base,
            sources=tuple(sources),
            parameters=resolve_parameters(method, parameters, len(sources)),
            options=resolve_options(method, options),
            thresholds=thresholds,
            cache=cache.values.setdefault((), {}),
        )
        return tensors, fuse_rule(
            method, tensors, kernels=waiting, dtype=torch.float32, device=kernels.device, cache=cache
        )

    fused(("model.norm.weight",), _Known(), SourceCache())  # the kernels are there

    def write(live: dict[str, Tensor]) -> None:
        tensors, rule = fused(tuple(base), tables, cache)
        if rule is not None:
            rule.write(live)
            return
        for name, tensor in merge_rule(method, tensors):
            live[name].copy_(tensor)

    return write


def measure(
    case: str,
    base: dict[str, Tensor],
    sources: list[dict[str, Tensor]],
    kernels: Kernels,
    timed: Callable[[dict[str, Callable[[], object]]], dict[str, float]],
    with_plain: bool,
) -> dict[str, Any]:
    """One row of the table."""
    method, _ = CASES[case]
    candidate = fused_side(case, base, sources, kernels)
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    copied = torch.empty(sum(map(Tensor.numel, base.values())), dtype=torch.bfloat16, device=kernels.device)
    copy = torch.empty_like(copied)
    sides: dict[str, Callable[[], object]] = {"copy": lambda: copy.copy_(copied), "fused": lambda: candidate(live)}
    plain = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    if with_plain and case in PLAIN:
        sides["plain"] = lambda: PLAIN[case](base, sources, plain)
    for side in ("copy", "fused"):
        sides[side]()  # pages touched, tables made
    seconds = timed(sides)
    if "plain" in sides:
        largest = max(float((live[name].float() - plain[name].float()).abs().max()) for name in live)
        if largest > 0.01:
            raise SystemExit(f"{case}: fused and plain differ by {largest}")
    moved = copied.nbytes * (len(sources) + (method != "linear") + 1)
    bandwidth = {"fused": moved / seconds["fused"] / 1e9, "copy": 2 * copied.nbytes / seconds["copy"] / 1e9}
    return {
        "method": case,
        "fused s": seconds["fused"],
        "plain s": seconds.get("plain"),
        "plain / fused": seconds["plain"] / seconds["fused"] if "plain" in seconds else None,
        "fused GB/s": bandwidth["fused"],
        "copy GB/s": bandwidth["copy"],
        "of copy": bandwidth["fused"] / bandwidth["copy"],
    }


def fused_side(
    case: str, base: dict[str, Tensor], sources: list[dict[str, Tensor]], kernels: Kernels
) -> Callable[[dict[str, Tensor]], None]:
    """Writes a candidate of the search: what is the same for all candidates is there, all else is done every time."""
    method, options = CASES[case]
    given: dict[str, dict[str, Any]] = {"ties": {"density": DENSITY}, "dare_ties": {"drop_rate": 0.5}}
    parameters = resolve_parameters(method, given.get(method, {}), len(sources))
    tables, cache, waiting = ThresholdTables(base, sources), SourceCache(), _Waiting(kernels)

    def write(live: dict[str, Tensor]) -> None:
        resolved = resolve_options(method, options)
        tensors = RuleTensors(
            names=tuple(base),
            base=base,
            sources=tuple(sources),
            parameters=parameters,
            options=resolved,
            thresholds=tables,
            cache=cache.values,
        )
        rule = fuse_rule(method, tensors, kernels=waiting, dtype=torch.bfloat16, device=kernels.device, cache=cache)
        if rule is None:
            raise SystemExit(f"{method} cannot be compiled here")
        rule.write(live)

    return write


class _Known(Thresholds):
    """Thresholds that take no time."""

    def kth_magnitude(self, source: int, scope: tuple[str, ...], k: int) -> float:
        return 0.002


class _Waiting(Kernels):
    """Kernels that are there when they are asked for."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__(kernels.device)
        self._inner = kernels

    def find(self, kind: Any, *, compile_missing: bool) -> Any:
        return self._inner.compile(kind)


def models(
    size: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, experts: int = EXPERTS
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Base and experts with the tensors of a Llama of that size."""
    generator = torch.Generator().manual_seed(0)
    base = {
        name: (torch.randn(shape, generator=generator) * 0.02).to(device, dtype) for name, shape in shapes(size).items()
    }
    sources = [
        {
            name: (tensor.float() + (torch.randn(tensor.shape, generator=generator) * 0.002).to(device)).to(dtype)
            for name, tensor in base.items()
        }
        for _ in range(experts)
    ]
    return base, sources


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    layers, width, narrow, inner, vocabulary = SIZES[size]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for part in "qkvo":
            found[f"{prefix}self_attn.{part}_proj.weight"] = (narrow if part in "kv" else width, width)
        for part in ("gate", "up"):
            found[f"{prefix}mlp.{part}_proj.weight"] = (inner, width)
        found[f"{prefix}mlp.down_proj.weight"] = (width, inner)
        for part in ("input", "post_attention"):
            found[f"{prefix}{part}_layernorm.weight"] = (width,)
    return found


def plain_linear(_: Mapping[str, Tensor], sources: Sequence[Mapping[str, Tensor]], out: dict[str, Tensor]) -> None:
    for name in out:
        total = torch.zeros_like(out[name], dtype=torch.float32)
        for source in sources:
            total += source[name].float() * (1 / len(sources))
        out[name].copy_(total)


def plain_task_arithmetic(
    base: Mapping[str, Tensor], sources: Sequence[Mapping[str, Tensor]], out: dict[str, Tensor]
) -> None:
    for name in out:
        total = base[name].float()
        for source in sources:
            total += 0.3 * (source[name].float() - base[name].float())
        out[name].copy_(total)


def plain_ties(base: Mapping[str, Tensor], sources: Sequence[Mapping[str, Tensor]], out: dict[str, Tensor]) -> None:
    for name in out:
        trimmed = []
        for source in sources:
            vector = source[name].float() - base[name].float()
            magnitude = vector.abs()
            kept = int(DENSITY * vector.numel())
            threshold = torch.sort(magnitude.flatten()).values[vector.numel() - kept - 1]
            trimmed.append(torch.where(magnitude >= threshold, vector, 0.0))
        stacked = torch.stack(trimmed)
        agreeing = torch.where(stacked * stacked.sum(0).sign() > 0, stacked, 0.0)
        mean = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
        out[name].copy_(base[name].float() + mean)


PLAIN = {
    "linear": plain_linear,
    "task_arithmetic": plain_task_arithmetic,
    "ties": plain_ties,
}

if __name__ == "__main__":
    main()
