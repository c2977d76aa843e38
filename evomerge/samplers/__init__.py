"""The samplers of a search: one row each, and what a search has to know of a sampler before it builds one.

Holds: Optuna samplers whose proposals are a function of the study and the seed, so that a search resumes after a crash
as if nothing had happened. Does not hold: merging and scoring; a sampler sees params and values only. Start reading at
`build_sampler`, then `base.py`.

A row imports the file of its sampler when the sampler is built: a spec reads these rows, and loads neither Optuna nor
pycma for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from evomerge.errors import InvalidInput, unknown_name
from evomerge.samplers.settings import (
    CatCmaSettings,
    CmaSettings,
    ForestSettings,
    GpSettings,
    NoSettings,
    NsgaiiiSettings,
    NsgaiiSettings,
    TpeSettings,
)

if TYPE_CHECKING:
    from evomerge.samplers.base import SamplerInputs, SamplerSpace, SearchSampler
    from evomerge.samplers.constraints import Constraints

__all__ = ["SAMPLERS", "SamplerInfo", "build_sampler"]


class SamplerBuilder(Protocol):
    """Builds a sampler.

    Raises:
        InvalidInput: an unknown setting, a value out of its range, or a space that the sampler cannot search.
    """

    def __call__(self, inputs: SamplerInputs) -> SearchSampler: ...


@dataclass(frozen=True, kw_only=True)
class SamplerInfo:
    """A sampler as data: the abilities that matter before it is built. Those of a built one are in `SearchSampler`.

    Attributes:
        build: for one objective.
        build_several: for several objectives; None if the sampler optimises one only.
        settings: its settings in search.yaml, all of them optional.
        constraints: it can be used with constraints. `random` and `qmc` learn from nothing; with them, constraints only
            decide which trial is the best.
        complete_only: it learns from complete trials only, and not from those that were dropped early.
        needs_reference_points: with several objectives it searches for what is better than known merges.
    """

    name: str
    build: SamplerBuilder
    build_several: SamplerBuilder | None
    settings: type[NoSettings] = NoSettings
    constraints: bool = True
    complete_only: bool = False
    needs_reference_points: bool = False


def build_sampler(
    name: str,
    settings: Mapping[str, Any],
    *,
    seed: int,
    space: SamplerSpace,
    workers: int,
    directions: int = 1,
    constraints: Constraints | None = None,
    tie_breaker: str | None = None,
    first_step: float = 1.0,
    begin: Mapping[str, Any] | None = None,
) -> SearchSampler:
    """Build a sampler by its name.

    Args:
        name: a key of `SAMPLERS`.
        settings, seed, space, workers, tie_breaker, first_step, begin: see `SamplerInputs`.
        directions: number of objectives.
        constraints: given a finished trial, one number per condition, none above 0 where the trial is feasible. They
            are recorded with the trial.

    Raises:
        InvalidInput: unknown sampler or setting, a value out of its range, or a space, several objectives or
            constraints that the sampler cannot serve.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    info = SAMPLERS[name]
    build = info.build if directions == 1 else info.build_several
    if build is None:
        raise InvalidInput(
            f"the sampler {name} optimises one objective, but there are {directions}; use cma, nsgaii, nsgaiii, tpe or "
            "gp"
        )
    if constraints is not None and not info.constraints:
        raise InvalidInput(f"the sampler {name} cannot learn from constraints; use nsgaii, nsgaiii, tpe or gp")
    from evomerge.samplers.base import SamplerInputs
    from evomerge.samplers.constraints import ConstrainedSampler

    inputs = SamplerInputs(
        settings=settings,
        seed=seed,
        space=space,
        workers=workers,
        tie_breaker=tie_breaker,
        first_step=first_step,
        begin=begin,
    )
    sampler = build(inputs)
    return sampler if constraints is None else ConstrainedSampler(sampler, constraints)


def _catcma(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.catcma import build

    return build(inputs)


def _cma(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.cma import build

    return build(inputs)


def _cma_with_reference_points(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.reference_points import build

    return build(inputs)


def _forest(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.forest import build

    return build(inputs)


def _gp(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.optuna_builtin import build_gp

    return build_gp(inputs)


def _nsgaii(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.optuna_builtin import build_nsgaii

    return build_nsgaii(inputs)


def _nsgaiii(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.optuna_builtin import build_nsgaiii

    return build_nsgaiii(inputs)


def _qmc(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.sobol import build

    return build(inputs)


def _random(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.optuna_builtin import build_random

    return build_random(inputs)


def _tpe(inputs: SamplerInputs) -> SearchSampler:
    from evomerge.samplers.optuna_builtin import build_tpe

    return build_tpe(inputs)


_ALL = (
    SamplerInfo(name="catcma", build=_catcma, build_several=None, settings=CatCmaSettings, constraints=False),
    SamplerInfo(
        name="cma",
        build=_cma,
        build_several=_cma_with_reference_points,
        settings=CmaSettings,
        constraints=False,
        needs_reference_points=True,
    ),
    SamplerInfo(name="forest", build=_forest, build_several=None, settings=ForestSettings, constraints=False),
    SamplerInfo(name="gp", build=_gp, build_several=_gp, settings=GpSettings, complete_only=True),
    SamplerInfo(name="nsgaii", build=_nsgaii, build_several=_nsgaii, settings=NsgaiiSettings, complete_only=True),
    SamplerInfo(name="nsgaiii", build=_nsgaiii, build_several=_nsgaiii, settings=NsgaiiiSettings, complete_only=True),
    SamplerInfo(name="qmc", build=_qmc, build_several=_qmc),
    SamplerInfo(name="random", build=_random, build_several=_random),
    SamplerInfo(name="tpe", build=_tpe, build_several=_tpe, settings=TpeSettings),
)
SAMPLERS: Final[dict[str, SamplerInfo]] = {info.name: info for info in _ALL}
