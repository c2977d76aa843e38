"""Trainers by name: the worker runs the one that a job names, and knows no other thing about it."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.jobs import Failed, Progress, Train, Trained, WorkerSetup
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.trainers import TRAINERS, find_trainer, planned_tokens
from evomerge.worker import Worker

TOY = Path(__file__).parent.parent / "examples" / "toy"


@dataclass(frozen=True)
class _Step:
    step: int
    steps: int
    reported: dict[str, float]


@dataclass(frozen=True)
class _Merge:
    recipe: Recipe
    before: dict[str, float]
    after: dict[str, float]
    forward_tokens: int = 7
    gradient_tokens: int = 5
    seconds: float = 1.5
    checkpoints: tuple[Path, ...] = ()


def keeps_the_recipe(inputs, settings):
    """A trainer that learns nothing."""
    for step in range(1, settings["steps"] + 1):
        yield _Step(step, settings["steps"], {"loss": 1 / step})
    return _Merge(inputs.initial, dict.fromkeys(inputs.texts, 2.0), dict.fromkeys(inputs.texts, 1.0))


class _Texts:
    """An evaluator that has one text."""

    def calibration(self, task, items):
        return [CalibrationText((1, 2, 3), 1)]

    read_calibration = calibration


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.worker.build_evaluator", lambda name, **_: _Texts())
    monkeypatch.setattr("evomerge.worker.calibration_texts", lambda evaluator, calibration: evaluator.calibration(0, 0))
    base, expert = (ModelRef(name, str(TOY / "models" / name)) for name in ("base", "sort"))
    return Worker(
        WorkerSetup(
            base=base,
            experts=(expert,),
            dtype="float32",
            seed=0,
            evaluator="none",
            device="cpu",
            artifacts=str(tmp_path),
        ),
        "w",
    )


def job(trainer, worker):
    base, expert = worker._setup.base, worker._setup.experts[0]
    names = tuple(entry.name for entry in worker.bank.base.catalogue.mergeable)
    rule = Rule(
        tensors=names,
        method="linear",
        sources=("sort",),
        parameters=resolve_parameters("linear", {}, 1),
        options=resolve_options("linear", {}),
    )
    recipe = Recipe(base=base, sources=(expert,), rules=(rule,), dtype="float32")
    return Train(key="dam", recipe=recipe, settings={"steps": 2}, calibration={"sort": "its texts"}, trainer=trainer)


def test_a_job_is_done_by_the_trainer_that_it_names(worker, monkeypatch):
    monkeypatch.setitem(TRAINERS, "fake", keeps_the_recipe)
    train = job("fake", worker)
    *steps, outcome = worker.events(train)
    assert steps == [
        Progress(key="dam", step=1, steps=2, losses={"loss": 1.0}),
        Progress(key="dam", step=2, steps=2, losses={"loss": 0.5}),
    ]
    assert outcome.result == Trained(train.recipe, {"sort": (2.0, 1.0)})
    assert (outcome.cost.forward_tokens, outcome.cost.gradient_tokens, outcome.cost.seconds) == (7, 5, 1.5)


def test_a_trainer_that_does_not_exist_is_refused_with_the_nearest_names(worker):
    with pytest.raises(InvalidInput, match="unknown trainer 'damm'; did you mean 'dam'"):
        find_trainer("damm")
    outcome = worker.run(job("damm", worker))
    assert isinstance(outcome.result, Failed)
    assert outcome.result.invalid


@pytest.mark.parametrize("trainer", ["dam", "adamerging", "learned"])
def test_the_tokens_of_every_trainer_are_planned_by_its_name(trainer):
    texts = {"sort": [CalibrationText((1, 2, 3), 1)] * 4}
    planned = planned_tokens(trainer, texts, {"steps": 2, "batch_size": 1}, 0)
    assert (planned.steps, planned.gradient_tokens) == (2, {"dam": 6, "adamerging": 12, "learned": 6}[trainer])
