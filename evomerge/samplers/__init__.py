"""The samplers of a search, by name.

Each one is an ordinary Optuna sampler whose proposals are a function of the study and the seed, so that a search
goes on after a crash as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

from optuna.samplers import BaseSampler

from evomerge.errors import InvalidInput, unknown_name
from evomerge.samplers import catcma, cma, optuna_builtin, reference_points, sobol
from evomerge.samplers.base import SamplerSpace
from evomerge.samplers.catcma import CatCmaSampler
from evomerge.samplers.cma import CmaSampler
from evomerge.samplers.constraints import ConstrainedSampler, Constraints
from evomerge.samplers.optuna_builtin import RebuiltSampler
from evomerge.samplers.reference_points import Goal, GoalsSampler, write_goals
from evomerge.samplers.sobol import SobolSampler

__all__ = [
    "SAMPLERS",
    "CatCmaSampler",
    "CmaSampler",
    "ConstrainedSampler",
    "Constraints",
    "Goal",
    "GoalsSampler",
    "RebuiltSampler",
    "SamplerSpace",
    "SobolSampler",
    "build_sampler",
    "write_goals",
]


class _Builder(Protocol):
    def __call__(self, given: Mapping[str, Any], *, seed: int, space: SamplerSpace, workers: int) -> BaseSampler: ...


SAMPLERS: Final[Mapping[str, _Builder]] = MappingProxyType(
    {
        "catcma": catcma.build,
        "cma": cma.build,
        "gp": optuna_builtin.build_gp,
        "nsgaii": optuna_builtin.build_nsgaii,
        "nsgaiii": optuna_builtin.build_nsgaiii,
        "qmc": sobol.build,
        "random": optuna_builtin.build_random,
        "tpe": optuna_builtin.build_tpe,
    }
)

_UNCONSTRAINED = frozenset({"catcma", "cma"})


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
) -> BaseSampler:
    """The sampler of that name.

    Args:
        name: a key of `SAMPLERS`.
        settings: what the search says about it; settings that are absent or None have their defaults.
        seed: of the study.
        space: what is searched.
        workers: how many candidates are scored at a time; only defaults depend on it.
        directions: number of objectives.
        constraints: given a finished trial, one number per condition, none above 0 where the trial is feasible. They
            are recorded with the trial. `random` and `qmc` learn from nothing; with them, constraints only decide what
            counts as best.
        tie_breaker: user attribute of a trial that ranks trials of equal value, see `CmaSampler`. Others go without.

    With several objectives `cma` is the `GoalsSampler`.

    Raises:
        InvalidInput: unknown sampler or setting, a value out of its range, or a space, several objectives or
            constraints that the sampler cannot serve.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    if name == "catcma" and directions > 1:
        raise InvalidInput(
            f"the sampler catcma optimises one objective, but there are {directions}; use cma, nsgaii, nsgaiii, tpe or "
            "gp"
        )
    if name in _UNCONSTRAINED and constraints is not None:
        raise InvalidInput(f"the sampler {name} cannot learn from constraints; use nsgaii, nsgaiii, tpe or gp")
    build = SAMPLERS[name]
    if name == "cma":
        build = partial(cma.build, tie_breaker=tie_breaker) if directions == 1 else reference_points.build
    sampler = build(settings, seed=seed, space=space, workers=workers)
    return sampler if constraints is None else ConstrainedSampler(sampler, constraints)
