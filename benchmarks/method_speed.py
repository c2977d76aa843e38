"""Seconds in which each elementwise method makes a candidate: as a worker does, against a few lines of eager PyTorch.

*plain* is `plain_merges.py`: eager float32, tensor by tensor, with a sort for every quantile. *fused* is a warm
candidate of a search: what is the same for all candidates is there, all else is done; compiled where the method has a
formula, else by its own function. Both write bfloat16. Where no random mask is in it they have to agree.

`python benchmarks/method_speed.py [--size 100M] [--only NAME ...]`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from machine import arguments, interleaved, progress, report
from merge import SIZES, _Waiting, models
from plain_merges import DENSITY, DROP_RATE, GAMMA, PLAIN, WEIGHT
from torch import Tensor

from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import METHODS, resolve_options, resolve_parameters
from evomerge.passes.fused_rule import SourceCache, fuse_rule
from evomerge.passes.kernels import Kernels
from evomerge.passes.threshold_tables import ThresholdTables

# What is timed: method -> parameters and options, where they are not the defaults.
GIVEN: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": WEIGHT},
    "ties": {"density": DENSITY},
    "dare_linear": {"drop_rate": DROP_RATE, "weight": WEIGHT},
    "dare_ties": {"drop_rate": DROP_RATE},
    "breadcrumbs": {"density": 0.9, "gamma": GAMMA, "weight": WEIGHT},
    "breadcrumbs_ties": {"density": 0.9, "gamma": GAMMA, "weight": WEIGHT},
    "della_linear": {"density": 0.5, "spread": 0.5, "weight": WEIGHT},
    "della": {"density": 0.5, "spread": 0.5, "weight": WEIGHT},
    "consensus": {"threshold": 0.4, "agreement": 2.0, "weight": WEIGHT},
    "sce": {"select_topk": 0.2},
    "slerp": {"t": 0.5},
    "nearswap": {"t": 1e-3},
}
OPTIONS: dict[str, dict[str, Any]] = {"ties": {"trim_scope": "tensor"}, "dare_ties": {"dare_ties": "no_trim"}}


def main() -> None:
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="100M")
    parser.add_argument("--only", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, sources = models(given.size, device)
    timed = partial(interleaved, runs=given.runs, clock=given.clock)
    rows = []
    for name in given.only:
        progress(f"{given.size}: {name}")
        rows.append({"model": given.size, **measure(name, base, sources, Kernels(device), timed)})
    least = min(row["plain / fused"] for row in rows)
    report({"benchmark": "method_speed", "clock": given.clock, "ratio": least}, rows, given.json)


def measure(
    name: str,
    base: dict[str, Tensor],
    sources: list[dict[str, Tensor]],
    kernels: Kernels,
    timed: Callable[[dict[str, Callable[[], object]]], dict[str, float]],
) -> dict[str, Any]:
    """One row of the table."""
    sources = sources[: METHODS[name].sources]
    live, expected = ({key: torch.empty_like(tensor) for key, tensor in base.items()} for _ in range(2))
    candidate = candidate_side(name, base, sources, kernels)
    compiled = candidate(live)  # pages touched, tables and kernels made
    seconds = timed({"fused": lambda: candidate(live), "plain": lambda: write_plain(name, base, sources, expected)})
    largest = max(float((live[key].float() - expected[key].float()).abs().max()) for key in base)
    if largest > 0.01 and not METHODS[name].random:
        raise SystemExit(f"{name}: fused and plain differ by {largest}")
    return {
        "method": name,
        "compiled": "yes" if compiled else "no",
        "fused s": seconds["fused"],
        "plain s": seconds["plain"],
        "plain / fused": seconds["plain"] / seconds["fused"],
    }


def candidate_side(
    name: str, base: dict[str, Tensor], sources: list[dict[str, Tensor]], kernels: Kernels
) -> Callable[[dict[str, Tensor]], bool]:
    """Writes a candidate, and returns whether it was compiled."""
    parameters = resolve_parameters(name, GIVEN.get(name, {}), len(sources))
    tables, cache, waiting = ThresholdTables(base, sources), SourceCache(), _Waiting(kernels)

    def write(live: dict[str, Tensor]) -> bool:
        tensors = RuleTensors(
            names=tuple(base),
            base=base,
            sources=tuple(sources),
            parameters=parameters,
            options=resolve_options(name, OPTIONS.get(name, {})),
            thresholds=tables,
            rounded=torch.bfloat16,
            cache=cache.values,
        )
        rule = fuse_rule(name, tensors, kernels=waiting, dtype=torch.bfloat16, device=kernels.device, cache=cache)
        if rule is not None:
            rule.write(live)
            return True
        for key, tensor in merge_rule(name, tensors):
            live[key].copy_(tensor)
        return False

    return write


def write_plain(name: str, base: dict[str, Tensor], sources: list[dict[str, Tensor]], out: dict[str, Tensor]) -> None:
    for key, tensor in out.items():
        tensor.copy_(PLAIN[name](base[key].float(), [source[key].float() for source in sources]))


if __name__ == "__main__":
    main()
