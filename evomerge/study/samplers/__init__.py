"""The samplers of a search, by name.

Each one is an ordinary Optuna sampler whose proposals are a function of the study and the seed, so that a search
goes on after a crash as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from optuna.samplers import BaseSampler

from evomerge.errors import InvalidInput, unknown_name
from evomerge.study.samplers import cma, qmc, rebuilt
from evomerge.study.samplers.cma import CmaSampler
from evomerge.study.samplers.qmc import SobolSampler
from evomerge.study.samplers.rebuilt import RebuiltSampler
from evomerge.study.samplers.space import SamplerSpace

__all__ = ["SAMPLERS", "CmaSampler", "RebuiltSampler", "SamplerSpace", "SobolSampler", "build_sampler"]


class _Builder(Protocol):
    def __call__(self, given: Mapping[str, Any], *, seed: int, space: SamplerSpace, workers: int) -> BaseSampler: ...


SAMPLERS: Final[Mapping[str, _Builder]] = MappingProxyType(
    {
        "cma": cma.build,
        "gp": rebuilt.build_gp,
        "nsgaii": rebuilt.build_nsgaii,
        "qmc": qmc.build,
        "random": rebuilt.build_random,
        "tpe": rebuilt.build_tpe,
    }
)


def build_sampler(
    name: str, settings: Mapping[str, Any], *, seed: int, space: SamplerSpace, workers: int, directions: int = 1
) -> BaseSampler:
    """The sampler of that name.

    Args:
        name: a key of `SAMPLERS`.
        settings: what the search says about it; settings that are absent or None have their defaults.
        seed: of the study.
        space: what is searched.
        workers: how many candidates are scored at a time; only defaults depend on it.
        directions: number of objectives.

    Raises:
        InvalidInput: unknown sampler or setting, a value out of its range, or a space that the sampler cannot search.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    if name == "cma" and directions > 1:
        raise InvalidInput(
            f"the sampler cma optimises one objective, but there are {directions}; use nsgaii, tpe or gp"
        )
    return SAMPLERS[name](settings, seed=seed, space=space, workers=workers)
