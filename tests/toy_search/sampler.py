"""A sampler of a third party: points of a golden-ratio sequence, one number after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from evomerge.evolution.unit_cube import UnitCube
from evomerge.samplers import SAMPLERS, SamplerInfo, settings
from evomerge.samplers.base import SamplerInputs, SearchSampler, SeededSampler


class GoldenSampler(SeededSampler):
    """Proposes k * phi + seed * phi, modulo 1, where k counts the numbers that were proposed."""

    def __init__(self, inputs: SamplerInputs) -> None:
        super().__init__(inputs.space, seed=inputs.seed)
        self._cube = UnitCube(inputs.space.distributions)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        size = len(self._cube.free)
        first = self.ordinal(study, trial) * size + self._seed
        params = self._cube.decode(np.arange(first, first + size) * 0.6180339887498949 % 1.0)
        return {name: params[name] for name in search_space}


def build(inputs: SamplerInputs) -> SearchSampler:
    settings.only("golden", inputs.settings, ())
    return GoldenSampler(inputs)


SAMPLERS["golden"] = SamplerInfo(name="golden", build=build, build_several=build)
