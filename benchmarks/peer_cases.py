"""Merges that mergekit and evomerge both make: every method that takes whole models, under several options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EXPERTS = ("one", "two", "three")
GRADIENT = [0.2, 0.9, 0.5]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One merge.

    Attributes:
        method: mergekit's name.
        options: in words, for the table.
        parameters: of the whole merge.
        each: by expert, those of one model.
        experts: the models that are merged.
        base: the `base_model`; an empty text for none.
        seeded: it has random masks, and is compared by their distribution.
        computed_in: `dtype` of the file, where mergekit's rounding in float32 decides what is taken.
    """

    method: str
    options: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    each: tuple[Mapping[str, Any], ...] = ()
    experts: tuple[str, ...] = EXPERTS
    base: str = ""
    seeded: bool = False
    computed_in: str = "float32"

    def content(self, folder: str, written: str, *, narrow: bool = False) -> dict[str, Any]:
        """The merge as mergekit's YAML.

        Args:
            folder: has a directory for each model.
            written: dtype of the result.
            narrow: mergekit computes in that dtype too.
        """
        own = self.each or ({},) * len(self.experts)
        models = [
            {"model": f"{folder}/{name}"} | ({"parameters": dict(values)} if values else {})
            for name, values in zip(self.experts, own, strict=True)
        ]
        content: dict[str, Any] = {"merge_method": self.method, "models": models}
        if self.base:
            content["base_model"] = f"{folder}/{self.base}"
        if self.parameters:
            content["parameters"] = dict(self.parameters)
        return content | {"dtype": written if narrow else self.computed_in, "out_dtype": written}


def _weights(*weights: Any, **others: Any) -> tuple[dict[str, Any], ...]:
    """Parameters by expert; of `others` all have the same."""
    return tuple({"weight": weight, **others} for weight in weights)


def _averages() -> Iterator[Case]:
    yield Case(method="linear", options="weights 1, 0.3, 0.5", each=_weights(1.0, 0.3, 0.5))
    plain = {"normalize": False}
    yield Case(method="linear", options="normalize: false", each=_weights(0.5, 0.3, 0.4), parameters=plain)
    by_name = [{"filter": "mlp", "value": GRADIENT}, {"filter": "q_proj", "value": [0.1, 0.7]}, {"value": 0.5}]
    yield Case(method="linear", options="gradients by filter", each=_weights(by_name, 0.3, [1, 0]))
    pair = ("one", "two")
    for t in (0.0, 0.35, 1.0):
        yield Case(method="slerp", options=f"t {t:g}", parameters={"t": t}, experts=pair, base="one")
    gradient = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"value": 0.5}]
    yield Case(method="slerp", options="gradient of t", parameters={"t": gradient}, experts=pair, base="one")
    for base in ("", "base"):
        for flat, rows in ((True, False), (False, True), (False, False)):
            units = "flat" if flat else "rows" if rows else "columns"
            yield Case(
                method="nuslerp",
                options=f"{units}, {'task vectors' if base else 'models'}",
                each=_weights(0.6, 0.3),
                parameters={"nuslerp_flatten": flat, "nuslerp_row_wise": rows},
                experts=pair,
                base=base,
            )
        for weights in ((1.0, 1.0, 1.0), (0.6, 0.3, 0.4)):
            given = ", ".join(f"{weight:g}" for weight in weights)
            vectors = "task vectors" if base else "models"
            yield Case(method="multislerp", options=f"weights {given}, {vectors}", each=_weights(*weights), base=base)
    yield Case(method="karcher", options="three models")
    yield Case(method="karcher", options="two models", experts=pair)


def _task_vectors() -> Iterator[Case]:
    weights = _weights(0.8, 0.5, -0.2)
    for parameters in ({}, {"lambda": 0.6}, {"normalize": True}):
        words = ", ".join(f"{key}: {str(value).lower()}" for key, value in parameters.items())
        each, options = weights, f"weights 0.8, 0.5, -0.2 {words}".strip()
        yield Case(method="task_arithmetic", options=options, each=each, parameters=parameters, base="base")
    for density in (0.0, 0.01, 0.2, 0.5, 0.9, 1.0):
        each = _weights(1.0, 0.5, 0.7, density=density)
        yield Case(method="ties", options=f"density {density:g}", each=each, base="base")
    each = _weights(1.0, 0.5, 0.7, density=0.3)
    yield Case(method="ties", options="normalize: false", each=each, parameters={"normalize": False}, base="base")
    yield Case(method="ties", options="lambda: 0.6", each=each, parameters={"lambda": 0.6}, base="base")
    each = _weights(1.0, 0.5, -0.7, density=0.3)
    yield Case(method="ties", options="a negative weight", each=each, base="base")
    each = (
        {"weight": 1.0, "density": [1, 0.7, 0.1]},
        {"weight": [0, 0.3, 0.7, 1], "density": 0.5},
        {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}], "density": 0.33},
    )
    yield Case(method="ties", options="gradients and filters", each=each, parameters={"int8_mask": True}, base="base")
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        for density, gamma in ((0.9, 0.01), (0.5, 0.1), (0.8, 0.3), (0.3, 1e-6)):
            each = _weights(0.8, 0.5, 0.7, density=density, gamma=gamma)
            yield Case(method=method, options=f"density {density:g}, gamma {gamma:g}", each=each, base="base")
        each = _weights(0.8, 0.5, 0.7, density=0.7)
        yield Case(method=method, options="density 0.7, gamma by default", each=each, base="base")
    for share in (1.0, 0.5, 0.1):
        yield Case(method="sce", options=f"select_topk {share:g}", parameters={"select_topk": share}, base="base")
    for rows in (False, True):
        parameters = {"filter_wise": rows}
        yield Case(method="model_stock", options="by row" if rows else "by tensor", parameters=parameters, base="base")
    yield Case(method="ram", options="defaults", base="base")
    yield Case(method="ram", options="epsilon: 0.001", parameters={"epsilon": 1e-3}, base="base")
    yield Case(method="ramplus_tl", options="defaults", base="base")
    given = {"r": 0.3, "alpha": 1.0, "epsilon": 1e-3}
    yield Case(method="ramplus_tl", options="r 0.3, alpha 1, epsilon 0.001", parameters=given, base="base")


def _small_ones() -> Iterator[Case]:
    pair = ("one", "two")
    for t in (1e-4, 1e-3):
        yield Case(method="nearswap", options=f"t {t:g}", parameters={"t": t}, experts=pair, base="one")
    yield Case(method="arcee_fusion", options="two models", experts=pair, base="one", computed_in="float64")
    yield Case(method="passthrough", options="one model", experts=("one",))
    scale = ({"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1.0}]},)
    yield Case(method="passthrough", options="scale by filter", experts=("one",), each=scale)


def _seeded() -> Iterator[Case]:
    for method in ("dare_linear", "dare_ties"):
        for parameters in ({}, {"rescale": False}, {"lambda": 0.6}):
            words = ", ".join(f"{key}: {str(value).lower()}" for key, value in parameters.items())
            each = _weights(0.8, 0.5, 0.7, density=0.4)
            options = f"density 0.4 {words}".strip()
            yield Case(method=method, options=options, each=each, parameters=parameters, base="base", seeded=True)
    for method in ("della_linear", "della"):
        for epsilon in (0.1, 0.3, None):
            own = {} if epsilon is None else {"epsilon": epsilon}
            each = _weights(0.8, 0.5, 0.7, density=0.4, **own)
            options = "density 0.4, epsilon " + ("by default" if epsilon is None else f"{epsilon:g}")
            yield Case(method=method, options=options, each=each, base="base", seeded=True)
        each = _weights(0.8, 0.5, 0.7, density=0.4, epsilon=0.1)
        yield Case(
            method=method,
            options="density 0.4, rescale: false",
            each=each,
            parameters={"rescale": False},
            base="base",
            seeded=True,
        )


CASES: tuple[Case, ...] = (*_averages(), *_task_vectors(), *_small_ones(), *_seeded())
