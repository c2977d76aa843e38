"""The promises of a sampler, as tests. A test module subclasses this and says how the sampler is built."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from evomerge.errors import InvalidInput
from evomerge.samplers import build_sampler
from evomerge.storage.attributes import TELL

__all__ = ["SamplerContract", "Space"]

Params = dict[str, Any]
NewStudy = Callable[..., optuna.Study]


@dataclass(frozen=True)
class Space:
    """A search space for tests; `children` maps a parameter to the (parent, value) that it exists for."""

    distributions: Mapping[str, BaseDistribution]
    centre: Mapping[str, Any] = field(default_factory=dict)
    children: Mapping[str, tuple[str, Any]] = field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        return bool(self.children)

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        return all(name in params for name in self.active(params))

    def active(self, params: Mapping[str, Any]) -> Iterator[str]:
        """Names of the parameters that exist; parents come first, so that `params` may grow meanwhile."""
        for name in self.distributions:
            parent, value = self.children.get(name, (None, None))
            if parent is None or params.get(parent) == value:
                yield name


def box(dimensions: int) -> Space:
    """[0, 1]^N; the centre is off the middle, so that the two cannot be confused."""
    names = [f"x{i:02d}" for i in range(dimensions)]
    return Space({name: FloatDistribution(0.0, 1.0) for name in names}, dict.fromkeys(names, 0.4))


NUMBERS = Space(
    {
        "plain": FloatDistribution(-2.0, 3.0),
        "log": FloatDistribution(1e-4, 10.0, log=True),
        "step": FloatDistribution(-0.5, 0.7, step=0.1),
        "integer": IntDistribution(-3, 8),
        "even": IntDistribution(0, 10, step=2),
        "log_integer": IntDistribution(1, 100, log=True),
        "single": FloatDistribution(0.25, 0.25),
    },
    {"plain": 0.5, "log": 0.03, "step": 0.1, "integer": 2, "even": 4, "log_integer": 10, "single": 0.25},
)
CATEGORIES = Space(
    {**NUMBERS.distributions, "choice": CategoricalDistribution(("a", "b", "c"))}, {**NUMBERS.centre, "choice": "a"}
)
CONDITIONAL = Space(
    {
        "method": CategoricalDistribution(("linear", "ties")),
        "linear.weight": FloatDistribution(0.0, 1.0),
        "ties.weight": FloatDistribution(0.0, 2.0),
        "ties.density": FloatDistribution(0.1, 1.0),
    },
    {"method": "linear", "linear.weight": 0.5},
    {
        "linear.weight": ("method", "linear"),
        "ties.weight": ("method", "ties"),
        "ties.density": ("method", "ties"),
    },
)


def loss(params: Mapping[str, Any]) -> float:
    """Some function of all the params that is not the same everywhere."""
    return sum((float(v) - 0.3) ** 2 if isinstance(v, int | float) else float(v == "b") for v in params.values())


def ask(study: optuna.Study, space: Space) -> optuna.Trial:
    """As evomerge asks: every parameter that exists, parents first."""
    trial = study.ask()
    suggest_all(trial, space)
    return trial


def suggest_all(trial: optuna.Trial, space: Space) -> Params:
    params: Params = {}
    for name in space.active(params):
        params[name] = suggest(trial, name, space.distributions[name])
    return params


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
        case FloatDistribution():
            return trial.suggest_float(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case IntDistribution():
            return trial.suggest_int(
                name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
    raise AssertionError(distribution)


def tell(study: optuna.Study, trial: optuna.Trial, value: float, position: int) -> None:
    trial.set_user_attr(TELL, position)
    study.tell(trial, value)


def run(study: optuna.Study, space: Space, n: int) -> list[Params]:
    """Ask, score and tell n trials, one at a time."""
    asked = []
    for _ in range(n):
        trial = ask(study, space)
        asked.append(trial.params)
        tell(study, trial, loss(trial.params), trial.number)
    return asked


def crash_in_ask(study: optuna.Study, space: Space) -> None:
    """Leave behind what a controller that is killed in ask does, and clean up as the next one does."""
    trial = study.ask()
    names = list(space.active({}))
    for name in names[: len(names) // 2]:
        suggest(trial, name, space.distributions[name])
    study.tell(trial.number, state=TrialState.FAIL)


def proposed(study: optuna.Study, space: Space) -> list[Params]:
    return [t.params for t in study.get_trials(deepcopy=False) if space.is_complete(t.params)]


def disturb_global_generators(salt: int) -> None:
    random.seed(salt)
    np.random.seed(salt)
    torch.manual_seed(salt)


def global_generators() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state(legacy=False)), torch.get_rng_state().numpy().tobytes()


class SamplerContract:
    """Subclasses set `name`, and whatever else differs; `spaces` are those that the sampler can search.

    Tests that take `space` run once for each of them; those that take `new_study` too run in memory, and for the first
    space also on a disk.
    """

    name: str
    settings: Mapping[str, Any] = {}
    spaces: Mapping[str, Space] = {"numbers": NUMBERS, "categories": CATEGORIES, "conditional": CONDITIONAL}
    trials = 30

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Pytest's hook: runs the tests over the spaces."""
        spaces = list(self.spaces)
        if "storage_kind" in metafunc.fixturenames:
            pairs = [(name, "memory") for name in spaces] + [(spaces[0], "sqlite")]
            metafunc.parametrize(("space_name", "storage_kind"), pairs)
        elif "space_name" in metafunc.fixturenames:
            metafunc.parametrize("space_name", spaces)

    @pytest.fixture
    def space(self, space_name: str) -> Space:
        return self.spaces[space_name]

    @pytest.fixture
    def new_study(self, storage_kind: str, tmp_path: Path) -> NewStudy:
        """Opens the study of a name: a new object at each call, on the same storage where the name is the same."""
        memory: dict[str, optuna.storages.InMemoryStorage] = {}

        def open_study(sampler: BaseSampler, name: str = "search") -> optuna.Study:
            if storage_kind == "memory":
                storage: Any = memory.setdefault(name, optuna.storages.InMemoryStorage())
            else:
                storage = f"sqlite:///{tmp_path / name}.db"
            return optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)

        return open_study

    @pytest.fixture
    def n(self, storage_kind: str) -> int:
        """Number of trials: fewer where each one is written to a disk."""
        return self.trials if storage_kind == "memory" else min(self.trials, 8)

    def sampler(self, space: Space, seed: int = 7, workers: int = 1) -> BaseSampler:
        return build_sampler(self.name, self.settings, seed=seed, space=space, workers=workers)

    def test_proposes_params_of_the_space_as_plain_python_values(
        self, space: Space, new_study: NewStudy, n: int
    ) -> None:
        study = new_study(self.sampler(space))
        for params in run(study, space, n):
            assert set(params) == set(space.active(params))
            for name, value in params.items():
                distribution = space.distributions[name]
                assert distribution._contains(distribution.to_internal_repr(value))
                assert type(value) in (int, float, str)
                assert type(value) is int or not isinstance(distribution, IntDistribution)
        assert len(proposed(study, space)) == n

    def test_same_seed_gives_the_same_sequence_and_another_seed_another_one(self, space: Space) -> None:
        def sequence(seed: int) -> list[Params]:
            study = optuna.create_study(sampler=self.sampler(space, seed))
            return run(study, space, self.trials)

        assert sequence(7) == sequence(7)
        assert sequence(7) != sequence(8)

    def test_proposals_differ_from_each_other(self) -> None:
        study = optuna.create_study(sampler=self.sampler(box(3)))
        asked = run(study, box(3), 4)  # later a sampler may well propose a point again, if it is good
        assert len({tuple(params.values()) for params in asked}) == 4
        assert all(len(set(params.values())) == 3 for params in asked)

    def test_a_resumed_study_continues_as_the_uninterrupted_one(
        self, space: Space, new_study: NewStudy, n: int
    ) -> None:
        whole = run(new_study(self.sampler(space), "whole"), space, n)
        for piece in (1, n // 2, 1, n - n // 2 - 2):
            run(new_study(self.sampler(space), "pieces"), space, piece)
        assert proposed(new_study(self.sampler(space), "pieces"), space) == whole

    def test_a_crash_in_ask_shifts_nothing(self, space: Space, new_study: NewStudy, n: int) -> None:
        whole = run(new_study(self.sampler(space), "whole"), space, n)
        for piece in (1, n // 2, 1, n - n // 2 - 2):
            study = new_study(self.sampler(space), "pieces")
            crash_in_ask(study, space)
            run(new_study(self.sampler(space), "pieces"), space, piece)
        assert proposed(new_study(self.sampler(space), "pieces"), space) == whole

    def test_global_generators_neither_matter_nor_move(self, space: Space) -> None:
        quiet = run(optuna.create_study(sampler=self.sampler(space)), space, self.trials)
        disturbed = []
        study = optuna.create_study(sampler=self.sampler(space))
        for number in range(self.trials):
            disturb_global_generators(number % 3)
            before = global_generators()
            disturbed += run(study, space, 1)
            assert global_generators() == before
        assert disturbed == quiet

    def test_workers_that_ask_together_get_different_proposals(self) -> None:
        space = box(2)
        study = optuna.create_study(sampler=self.sampler(space, workers=8))
        for _ in range(3):
            trials = [ask(study, space) for _ in range(8)]
            assert len({tuple(trial.params.values()) for trial in trials}) == 8
            for trial in trials:
                study.tell(trial, loss(trial.params))

    def test_works_under_plain_optimize(self, space: Space) -> None:
        def objective(trial: optuna.Trial) -> float:
            return loss(suggest_all(trial, space))

        study = optuna.create_study(sampler=self.sampler(space))
        study.optimize(objective, n_trials=self.trials)
        assert [t.state for t in study.trials] == [TrialState.COMPLETE] * self.trials

    def test_works_with_threads(self) -> None:
        space = box(2)
        study = optuna.create_study(sampler=self.sampler(space, workers=2))
        study.optimize(lambda trial: loss(suggest_all(trial, space)), n_trials=self.trials, n_jobs=2)
        assert len({tuple(t.params.values()) for t in study.trials}) > self.trials // 2

    def test_answers_a_parameter_that_the_space_does_not_have(self) -> None:
        def sequence() -> list[float]:
            study = optuna.create_study(sampler=self.sampler(box(2)))
            run(study, box(2), 12)
            return [study.ask().suggest_float("foreign", -1.0, 1.0), study.ask().suggest_float("foreign", -1.0, 1.0)]

        first, second = sequence()
        assert first != second
        assert sequence() == [first, second]

    def test_trials_without_params_are_survived(self, space: Space) -> None:
        study = optuna.create_study(sampler=self.sampler(space))
        study.add_trial(optuna.create_trial(value=0.5))
        assert len(run(study, space, self.trials)) == self.trials

    def test_an_unknown_setting_is_answered_with_the_known_ones(self) -> None:
        with pytest.raises(InvalidInput, match="unknown setting of sampler"):
            build_sampler(self.name, {"no_such_setting": 1}, seed=1, space=box(2), workers=1)
