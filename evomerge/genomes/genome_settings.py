"""Genomes of other searches as a space's file names them: `genome: {lfs: {...}}` in place of methods and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from evomerge.documents import Frozen, Positive
from evomerge.errors import InvalidInput
from evomerge.methods import resolve_options

__all__ = ["EVOLUTIONARY_PARAMETERS", "LFS_METHODS", "EvolutionarySettings", "GenomeSettings", "LfsSettings"]

LFS_METHODS = ("linear", "task_arithmetic", "ties", "slerp")

EVOLUTIONARY_PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("score",),
}

Filters = tuple[Annotated[str, Field(min_length=1)], ...]


class LfsSettings(Frozen):
    """The flat genome of layer-wise fusion (LFS).

    Attributes:
        granularity: layers per group; it divides the number of layers.
        filters: parts of tensor names. A tensor of a layer belongs to the first that its name contains, else to "base".
        options: method -> its options.
    """

    granularity: Positive
    filters: Filters = ()
    options: Mapping[str, Mapping[str, Any]] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        return LFS_METHODS

    def check(self, where: str, semantics: str) -> None:
        """Raises InvalidInput for options of a method that the genome has not, or that the method has not."""
        for method, options in self.options.items():
            if method not in LFS_METHODS:
                raise InvalidInput(f"{where}: options are for {', '.join(LFS_METHODS)}, but got {method!r}")
            resolve_options(method, options, semantics=semantics)


class EvolutionarySettings(Frozen):
    """The genome of mergekit-evolve. Weights are folded, densities clamped.

    Attributes:
        method: linear, task_arithmetic, ties, dare_ties or slerp.
        layer_granularity: layers per group; 0 for one group.
        filters: parts of tensor names. A tensor of a layer belongs to the first that its name contains, else to "base".
        allow_negative_weights: weights are not folded.
        smooth: values are interpolated over depth.
        limit: every gene is in [-limit, limit]; the reference has no bounds.
        options: of the method.
    """

    method: str
    layer_granularity: Annotated[int, Field(ge=0)] = 0
    filters: Filters = ()
    allow_negative_weights: bool = False
    smooth: bool = False
    limit: Annotated[float, Field(ge=1)] = 2.0
    options: Mapping[str, Any] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method,)

    def check(self, where: str, semantics: str) -> None:
        """Raises InvalidInput for a method that the genome has not, for its options, for slerp with `smooth`, and for
        an average with negative weights."""
        if self.method not in EVOLUTIONARY_PARAMETERS:
            raise InvalidInput(
                f"{where}: method is one of {', '.join(EVOLUTIONARY_PARAMETERS)}, but got {self.method!r}"
            )
        if self.smooth and self.method == "slerp":
            raise InvalidInput(f"{where}: slerp has a pair of sources per group, which cannot be smooth; use ties")
        if self.method == "linear" and self.allow_negative_weights:
            raise InvalidInput(
                f"{where}: linear is an average, which has no weights below 0; leave allow_negative_weights out, or "
                "use task_arithmetic"
            )
        resolve_options(self.method, self.options, semantics=semantics)


class GenomeSettings(Frozen):
    """A genome of another search: exactly one of these.

    Attributes:
        lfs: layer-wise fusion: each group of layers chooses among linear, task_arithmetic, ties and slerp.
        evolutionary: the genome of mergekit-evolve.
    """

    lfs: LfsSettings | None = None
    evolutionary: EvolutionarySettings | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> GenomeSettings:
        if (self.lfs is None) == (self.evolutionary is None):
            raise ValueError("name one genome: {lfs: {...}} or {evolutionary: {...}}")
        return self

    @property
    def chosen(self) -> LfsSettings | EvolutionarySettings:
        settings = self.lfs or self.evolutionary
        assert settings is not None  # one of them is there
        return settings
