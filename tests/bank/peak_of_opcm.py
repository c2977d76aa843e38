"""Prints the bytes that merges of two candidates by OPCM take at their peak, and those that were predicted."""

from __future__ import annotations

from pathlib import Path

import torch

from evomerge.bank.memory import projection_sizes
from evomerge.catalogue import build_catalogue
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import validate

SHAPES = {"embed_tokens.weight": (8000, 384)}
for layer in range(6):
    SHAPES[f"model.layers.{layer}.self_attn.q_proj.weight"] = (384, 384)
    SHAPES[f"model.layers.{layer}.mlp.up_proj.weight"] = (1024, 384)


def model(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def merge(shapes: dict[str, tuple[int, ...]], caches: dict[int, dict[object, object]]) -> None:
    base, *sources = (model(seed, shapes) for seed in range(4))
    for alpha in (0.3, 0.6):
        parameters, options = validate("opcm", {"alpha": alpha}, {}, 3)
        rule = RuleTensors(
            names=tuple(sorted(base)),
            base=base,
            sources=sources,
            parameters=parameters,
            options=options,
            prefix_cache=lambda count: caches.setdefault(count, {}),
        )
        _reset_peak()
        before = _status("VmRSS")
        for _ in merge_rule("opcm", rule):
            pass
        print(_status("VmHWM") - before)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    merge({"a.weight": (64, 32)}, {})
    merge(SHAPES, {})
    sizes = projection_sizes(
        build_catalogue({name: (shape, "float32") for name, shape in SHAPES.items()}), first_models=1
    )
    print(sizes.kept, sizes.merging)
