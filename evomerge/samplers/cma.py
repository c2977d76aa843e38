"""CMA-ES whose state is a function of the results in the study and of nothing else.

pycma does the arithmetic (N. Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772). Added here:

* **Nothing is stored.** The state is rebuilt by learning from the study's finished trials again, in the order of
  telling. A running sampler and a resumed one execute the same code, hence their states agree bit for bit.
* **Asynchronous.** A proposal is drawn from the present distribution when a worker becomes free, and the sampler learns
  from every finished trial, even one that was drawn from an earlier distribution. There are no generations to wait
  for, and no evaluation is lost to a generation that has passed: the next `popsize` results form the next population.
  `generation_mode: sync` waits for generations.
* **Keyed randomness.** Each draw has its own generator, keyed by the seed and the ordinal of the proposal, so that
  earlier draws and other processes do not matter.

This module implements Optuna's interface; `cma_evolution` has populations and restarts, and `cma_strategy` one run of
pycma.

Not covered: categorical parameters and conditional spaces. For several objectives see `reference_points`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import InvalidInput
from evomerge.evolution.cma_evolution import (
    Evaluation,
    Evolution,
    EvolutionSettings,
)
from evomerge.evolution.cma_strategy import default_popsize
from evomerge.evolution.unit_cube import UnitCube
from evomerge.samplers import settings
from evomerge.samplers.base import ReplayingSampler, SamplerInputs, SamplerSpace, refuse_hyperband
from evomerge.seeding import derive
from evomerge.storage.attributes import ASKED
from evomerge.storage.optuna_internals import cached_trials
from evomerge.trial_store.trial_memory import known_trials

__all__ = ["SIGMA0", "CmaSampler", "build", "default_popsize", "refuse_unsuitable"]

_DEFAULTS = settings.CmaSettings()
SIGMA0, _MEAN_EVERY = _DEFAULTS.sigma0, _DEFAULTS.mean_every


def build(inputs: SamplerInputs) -> CmaSampler:
    """Build the sampler from its settings, all of them optional: see `CmaSettings`."""
    chosen = settings.read("cma", inputs.settings, settings.CmaSettings)
    dimensions = len(UnitCube(inputs.space.distributions).free)
    default = default_popsize(dimensions, inputs.workers, synchronous=chosen.generation_mode == "sync")
    return CmaSampler(
        inputs.space,
        seed=inputs.seed,
        sigma0=chosen.sigma0 if "sigma0" in chosen.model_fields_set else chosen.sigma0 * inputs.first_step,
        popsize=default if chosen.popsize is None else chosen.popsize,
        generation_mode=chosen.generation_mode,
        restarts=chosen.restarts,
        mean_every=chosen.mean_every,
        tie_breaker=inputs.tie_breaker,
        only_near=inputs.first_step < 1,
        begin=inputs.begin,
    )


class CmaSampler(ReplayingSampler):
    """Covariance matrix adaptation over the unit cube, starting at the centre of the space.

    COMPLETE trials are told with their value and PRUNED ones with theirs (the last one reported), if it is finite and
    their params are in the space. All others are ignored, FAILed ones among them: they are proposals that did not
    happen. Seeds that were enqueued are learned from like any other trial.

    The order in which trials are told is that of the user attribute `evomerge:tell`; trials without it come first, in
    the order of their completion.

    Except for the seed, everything below is to be fixed when a study is created: with other settings the same results
    give another state.

    Args:
        space: what is searched; numbers only (floats, also logarithmic and stepped, and integers).
        seed: same seed, same results: same proposals.
        sigma0: initial standard deviation, as a share of each parameter's range.
        popsize: number of results that make one update of the distribution.
        generation_mode: `async` never waits. `sync` draws a whole population from one distribution and updates it when
            all its results are there, whatever the order in which they arrive: ask only while `ready` is true.
        restarts: what happens after the distribution has shrunk to a point: `ipop`, `bipop` or `none`.
        mean_every: propose the distribution's mean every `mean_every` trials; 0 disables it. In 24 dimensions
            13, the population, made the best of 200 trials 5 to 10 % better, and that of 400 hardly.
        tie_breaker: user attribute of a trial, a number of which more is better, that ranks trials of equal value.
        only_near: learn from results only that the present distribution could have drawn. Known merges far from the
            centre would otherwise make the first steps as long as the way to them.
        begin: params to begin at in place of the centre of the space.

    Raises:
        InvalidInput: the space is categorical, conditional or a single point, or a setting is out of its range.
    """

    def __init__(
        self,
        space: SamplerSpace,
        *,
        seed: int,
        sigma0: float = SIGMA0,
        popsize: int | None = None,
        generation_mode: str = "async",
        restarts: str = "ipop",
        mean_every: int = _MEAN_EVERY,
        tie_breaker: str | None = None,
        only_near: bool = False,
        begin: Mapping[str, Any] | None = None,
    ) -> None:
        refuse_unsuitable(space)
        super().__init__(space, seed=seed)
        self._cube = UnitCube(space.distributions)
        dimensions = len(self._cube.free)
        self._settings = EvolutionSettings(
            sigma0=sigma0,
            popsize=default_popsize(dimensions) if popsize is None else popsize,
            generation_mode=generation_mode,
            restarts=restarts,
            mean_every=mean_every,
        )
        self._tie_breaker = tie_breaker
        self._only_near = only_near
        self._begin = self._cube.encode(space.centre if begin is None else begin)
        self._lock = threading.Lock()  # Study.optimize(n_jobs=…) asks from several threads
        self._reset()

    @property
    def popsize(self) -> int:
        """Number of results that make one update, before restarts enlarge it."""
        return self._settings.popsize

    @property
    def told(self) -> tuple[int, ...]:
        """Numbers of the trials learned from, in order; the last ones may wait for the rest of their population."""
        return tuple(self._told)

    @property
    def generation(self) -> int:
        """Number of updates of the distribution."""
        return self._evolution.generation

    @property
    def restarts(self) -> int:
        """Number of restarts."""
        return self._evolution.restarts

    def mean(self, study: Study) -> dict[str, Any]:
        """The params at the mean of the distribution, after all that the study knows.

        In more than a few dimensions they are usually better than the best trial.
        """
        with self._lock:
            self._replay_new_results(study, study.get_trials(deepcopy=False))
            return self._cube.decode(self._evolution.mean)

    def ready(self, study: Study) -> bool:
        """Whether the next proposal can be made: always, unless generations are waited for.

        With `generation_mode: sync` the results that are there and the trials that are running must leave room in the
        population. A trial that fails makes room again, and is replaced by a draw from the same distribution.
        """
        if self._settings.generation_mode == "async":
            return True
        with self._lock:
            trials = study.get_trials(deepcopy=False)
            self._replay_new_results(study, trials)
            return self._room(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        refuse_hyperband(study, "cma")
        if len(study.directions) > 1:
            raise InvalidInput(
                "this sampler optimises one objective; weigh them into one, or use ReferencePointSampler"
            )
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._cube.free)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._lock:
            # As they were when the proposal was begun: Optuna's own samplers read them once per trial, too.
            trials = cached_trials(study)
            self._replay_new_results(study, trials)
            if self._settings.generation_mode == "sync" and not self._room(self._before(study, trial)):
                raise InvalidInput(
                    "the cma sampler waits for the results of a generation (generation_mode: sync): "
                    "ask only while its method ready() says so"
                )
            point = self._evolution.propose(self.ordinal(study, trial))
        params = self._cube.decode(point)
        return {name: params[name] for name in search_space}

    def _room(self, running: Sequence[FrozenTrial]) -> bool:
        return self._evolution.waiting + len(running) < self._evolution.popsize

    def _before(self, study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """The trials that run beside this one, and were asked for before it."""
        running = known_trials(study, (TrialState.RUNNING,))
        return [other for other in running if other.number < trial.number]

    def _reset(self) -> None:
        self._told: list[int] = []
        self._evolution = Evolution(self._begin, self._cube.bins, derive(self._seed, "cma"), self._settings)

    def _learn(self, study: Study, trial: FrozenTrial, ordinal: int) -> None:
        if trial.value is not None and math.isfinite(trial.value):
            point = self._cube.find(trial.params)
            if point is None:
                return
            if self._only_near and not self._evolution.strategy.is_plausible_draw(point):
                return
            self._told.append(trial.number)
            loss = -trial.value if study.direction == StudyDirection.MAXIMIZE else trial.value
            asked = bool(trial.user_attrs.get(ASKED)) or "fixed_params" in trial.system_attrs  # enqueued by any program
            companion = self._companion(trial)
            self._evolution.learn(Evaluation(ordinal=ordinal, point=point, loss=loss, companion=companion, asked=asked))

    def _companion(self, trial: FrozenTrial) -> float:
        """Rank of the trial among those of the same value; behind all others if the attribute is no number."""
        value = trial.user_attrs.get(self._tie_breaker) if self._tie_breaker else None
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return -math.inf
        return float(value)


def refuse_unsuitable(space: SamplerSpace) -> None:
    """Refuse a space that is no box of numbers."""
    if all(distribution.single() for distribution in space.distributions.values()):
        raise InvalidInput("the search space has nothing to search: every parameter has a single value")
    categorical = [name for name, d in space.distributions.items() if isinstance(d, CategoricalDistribution)]
    if categorical:
        raise InvalidInput(
            f"the cma sampler searches numbers, but {categorical[0]!r} is categorical "
            f"({len(categorical)} such parameters); use the sampler catcma or tpe"
        )
    if space.conditional:
        raise InvalidInput("the cma sampler needs a space in which every parameter always exists; use catcma or tpe")
