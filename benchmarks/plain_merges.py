"""The elementwise merge methods as a few lines of eager PyTorch: whole tensors in float32, a sort for every quantile.

They are what `method_speed.py` measures against, and a second opinion: its merges have to agree with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Plain = Callable[[Tensor, list[Tensor]], Tensor]
"""(base, sources) of one tensor in float32 -> the merged tensor."""

DENSITY, GAMMA, DROP_RATE, WEIGHT = 0.2, 0.01, 0.5, 0.3


def linear(base: Tensor, sources: list[Tensor]) -> Tensor:
    return torch.stack(sources).mean(0)


def task_arithmetic(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + WEIGHT * _vectors(base, sources).sum(0)


def ties(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + _elected([_trimmed(vector) for vector in _vectors(base, sources)])


def dare_linear(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + WEIGHT * sum(_dropped(vector) for vector in _vectors(base, sources))


def dare_ties(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + _elected([_dropped(vector) for vector in _vectors(base, sources)])


def breadcrumbs(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + WEIGHT * sum(_band(vector) for vector in _vectors(base, sources))


def breadcrumbs_ties(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + _elected([WEIGHT * _band(vector) for vector in _vectors(base, sources)])


def della_linear(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + WEIGHT * sum(_ranked(vector) for vector in _vectors(base, sources))


def della(base: Tensor, sources: list[Tensor]) -> Tensor:
    return base + _elected([WEIGHT * _ranked(vector) for vector in _vectors(base, sources)])


def consensus(base: Tensor, sources: list[Tensor]) -> Tensor:
    vectors = _vectors(base, sources)
    total = vectors.sum(0)
    count = sum((vector.abs() > 0.4 * (total - vector).abs()).float() for vector in vectors)
    return base + torch.where(count >= 2, WEIGHT * total, 0.0)


def sce(base: Tensor, sources: list[Tensor]) -> Tensor:
    vectors = _vectors(base, sources)
    variance = vectors.var(0, unbiased=False)
    kept = int(0.2 * int(variance.count_nonzero()))
    if kept:
        vectors = vectors * (variance >= variance.flatten().sort().values[-kept])
    shares = vectors.square().flatten(1).mean(1)
    shares = shares / shares.sum()
    agree = ((vectors * vectors.sum(0)) > 0).float() * shares.view(-1, *[1] * base.dim())
    return base + (agree * vectors).sum(0) / agree.sum(0).clamp(min=1e-6)


def ram(base: Tensor, sources: list[Tensor]) -> Tensor:
    vectors = _vectors(base, sources)
    changed = vectors.abs() > 1e-5
    return base + (vectors * changed).sum(0) / changed.sum(0).clamp(min=1)


def multislerp(base: Tensor, sources: list[Tensor]) -> Tensor:
    units = torch.stack([source / source.norm() for source in sources])
    mean = units.mean(0)
    return torch.stack([source.norm() for source in sources]).mean() * mean / mean.norm()


def model_stock(base: Tensor, sources: list[Tensor]) -> Tensor:
    vectors, n = _vectors(base, sources).flatten(1), len(sources)
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    cosine = ((cosines.sum() - n) / (n * (n - 1))).clamp(min=0.0)
    return base + n * cosine / (1 + (n - 1) * cosine) * vectors.mean(0).view_as(base)


def slerp(base: Tensor, sources: list[Tensor]) -> Tensor:
    one, two = sources[:2]
    angle = (one.flatten() @ two.flatten() / (one.norm() * two.norm())).clamp(-1, 1).acos()
    return (torch.sin(angle / 2) * one + torch.sin(angle / 2) * two) / torch.sin(angle)


def nearswap(base: Tensor, sources: list[Tensor]) -> Tensor:
    one, two = sources[:2]
    share = (1e-3 / (two - one).abs()).nan_to_num(nan=1.0, posinf=1.0).clamp(0, 1)  # as the method is published
    return (1 - share) * one + share * two


PLAIN: dict[str, Plain] = {
    function.__name__: function
    for function in (
        linear,
        task_arithmetic,
        ties,
        dare_linear,
        dare_ties,
        breadcrumbs,
        breadcrumbs_ties,
        della_linear,
        della,
        consensus,
        sce,
        ram,
        multislerp,
        model_stock,
        slerp,
        nearswap,
    )
}


def _vectors(base: Tensor, sources: Sequence[Tensor]) -> Tensor:
    return torch.stack([source - base for source in sources])


def _trimmed(vector: Tensor) -> Tensor:
    kept = int(DENSITY * vector.numel())
    return torch.where(vector.abs() >= vector.abs().flatten().sort().values[vector.numel() - kept - 1], vector, 0.0)


def _band(vector: Tensor) -> Tensor:
    sizes = vector.abs().flatten().sort().values
    kept = max(1, int(0.9 * len(sizes)))
    larger = min(int(GAMMA * len(sizes)), len(sizes) - kept)
    inside = (vector.abs() >= sizes[len(sizes) - larger - kept]) & (vector.abs() <= sizes[len(sizes) - larger - 1])
    return torch.where(inside, vector, 0.0)


def _dropped(vector: Tensor) -> Tensor:
    return vector * (torch.rand_like(vector) >= DROP_RATE) / (1 - DROP_RATE)


def _ranked(vector: Tensor) -> Tensor:
    rows = vector.abs().view(vector.shape[0] if vector.dim() > 1 else 1, -1)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1)
    kept = 0.25 + 0.5 * ranks / max(rows.shape[1] - 1, 1)
    return vector * (torch.rand_like(vector) < kept.view_as(vector)) / kept.view_as(vector)


def _elected(vectors: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(vectors))
    agreeing = torch.where(stacked * stacked.sum(0).sign() > 0, stacked, 0.0)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
