"""Quasi-random search: scrambled Sobol points, one per proposal, that fill the space more evenly than random ones.

Optuna's own QMCSampler keeps its position in the study and moves it on before a trial is complete, so that a crash in
ask leaves a hole. Here the position is the ordinal of the proposal.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from evomerge.evolution.unit_cube import UnitCube
from evomerge.samplers import settings
from evomerge.samplers.base import SamplerInputs, SamplerSpace, SeededSampler
from evomerge.seeding import derive

__all__ = ["SobolSampler", "build"]


def build(inputs: SamplerInputs) -> SobolSampler:
    """Build the sampler; it has no settings."""
    settings.read("qmc", inputs.settings, settings.NoSettings)
    return SobolSampler(inputs.space, seed=inputs.seed)


class SobolSampler(SeededSampler):
    """The points of a Sobol sequence, scrambled by the seed (Owen 1998; Matousek's linear scrambling with a shift).

    Results are ignored. In a conditional space all parameters have a coordinate, and those that do not exist in a
    trial are unused.
    """

    def __init__(self, space: SamplerSpace, *, seed: int) -> None:
        super().__init__(space, seed=seed)
        self._cube = UnitCube(space.distributions)
        self._lock = threading.Lock()
        generator = np.random.Generator(np.random.Philox(derive(seed, "qmc")))
        self._sequence = qmc.Sobol(len(self._cube.free), scramble=True, seed=generator) if self._cube.free else None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._sequence is None:
            return {}
        position = self.ordinal(study, trial)
        with self._lock:
            self._sequence.reset()
            if position:  # scipy cannot go forward by nothing
                self._sequence.fast_forward(position)
            point = self._sequence.random(1)[0]
        params = self._cube.decode(point)
        return {name: params[name] for name in search_space}
