"""The part of a long evaluation that is kept: between attempts, never instead of a result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge import load_spec
from evomerge.clock import ManualClock
from evomerge.errors import MergeError
from evomerge.evaluation import Candidate, ItemBlock, Scores
from evomerge.evaluation.evaluator import ScoringStep
from evomerge.evaluation_checkpoints import FOLDER, ContinuedScores, EvaluationCheckpoints, discard
from evomerge.jobs import Progress, Score, WorkerSetup
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.opening.inputs import open_inputs
from evomerge.testing.evaluator_contract import candidate
from evomerge.worker import Worker

SEARCH = ItemBlock("search")
SCORES = Scores({}, {"forward": 1.0})


class Steps:
    """Makes ten steps of seven seconds; may fail in one of them."""

    def __init__(self, clock: ManualClock, *, fails_at: int = 0) -> None:
        self.fingerprint = "f"
        self.made: list[int] = []
        self._clock = clock
        self._fails_at = fails_at

    def score_by_steps(
        self, candidate: Candidate, items: ItemBlock, state: bytes | None = None
    ) -> Generator[ScoringStep, None, Scores]:
        for step in range(int(state or 0) + 1, 11):
            self._clock.advance(7.0)
            self.made.append(step)
            if step == self._fails_at:
                raise MergeError("its scores are not finite")
            yield ScoringStep(step=step, steps=10, state=str(step).encode)
        return SCORES


Open = Callable[..., tuple[EvaluationCheckpoints, Steps]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """The checkpoints of another worker of the same study, and its evaluator."""

    def build(seconds: float = 20.0, **settings: Any) -> tuple[EvaluationCheckpoints, Steps]:
        clock = ManualClock()
        steps = Steps(clock, **settings)
        return EvaluationCheckpoints(steps, ArtifactFolder(tmp_path), seconds=seconds, device="cpu", clock=clock), steps

    return build


def finish(steps: Generator[ScoringStep, None, ContinuedScores]) -> tuple[list[int], ContinuedScores]:
    """The steps after which more was kept, and the end."""
    told: list[int] = []
    while True:
        try:
            told.append(next(steps).step)
        except StopIteration as end:
            found: ContinuedScores = end.value
            return told, found


def cut_short(checkpoints: EvaluationCheckpoints, of: Candidate | None = None, items: ItemBlock = SEARCH) -> None:
    """An evaluation that is killed after it has told of two steps."""
    steps = checkpoints.score(of or candidate(), items)
    next(steps)
    next(steps)


def kept(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).iterdir())


def test_an_attempt_continues_behind_what_the_one_before_has_kept(opened: Open, tmp_path: Path) -> None:
    first, before = opened()
    cut_short(first)
    assert before.made == [1, 2, 3, 4, 5, 6]
    second, after = opened()
    told, found = finish(second.score(candidate(), SEARCH))
    assert after.made == [7, 8, 9, 10]
    assert told == [9]
    assert found.scores == SCORES
    assert found.seconds == 42.0
    assert [found.checkpoint] == [f"{FOLDER}/{path.name}" for path in kept(tmp_path)]
    discard(ArtifactFolder(tmp_path), [str(found.checkpoint)])
    assert kept(tmp_path) == []


def test_a_result_that_nobody_stored_is_found_out_again_from_the_last_checkpoint(opened: Open) -> None:
    finish(opened()[0].score(candidate(), SEARCH))
    again, evaluator = opened()
    finish(again.score(candidate(), SEARCH))
    assert evaluator.made == [10]


def test_a_short_evaluation_writes_nothing(opened: Open, tmp_path: Path) -> None:
    told, found = finish(opened(seconds=71.0)[0].score(candidate(), SEARCH))
    assert (told, found) == ([], ContinuedScores(scores=SCORES))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "items"),
    [
        (candidate(params={"x": 0.5}), SEARCH),
        (replace(candidate(), recipe=replace(candidate().recipe, dtype="bfloat16")), SEARCH),
        (candidate(), ItemBlock("held_out")),
        (candidate(), ItemBlock("search", 0, 10)),
    ],
    ids=["params", "recipe", "part", "block"],
)
def test_another_candidate_or_other_items_begin_at_the_first_step(
    opened: Open, other: Candidate, items: ItemBlock
) -> None:
    cut_short(opened()[0])
    checkpoints, evaluator = opened()
    finish(checkpoints.score(other, items))
    assert evaluator.made == list(range(1, 11))


def test_another_evaluator_begins_at_the_first_step(opened: Open) -> None:
    cut_short(opened()[0])
    checkpoints, evaluator = opened()
    evaluator.fingerprint = "g"
    finish(checkpoints.score(candidate(), SEARCH))
    assert evaluator.made == list(range(1, 11))


def test_a_worker_whose_base_has_another_chat_template_begins_at_the_first_pass(
    write_spec: Callable[..., Path], pack: Path, tmp_path: Path
) -> None:
    inputs = open_inputs(load_spec(write_spec(evaluator={"name": str(pack)}, workers={"checkpoint": 1e-9})))
    recipe = inputs.space.decode(inputs.space.centre)
    setup = replace(inputs.setup(), artifacts=str(tmp_path / "artifacts"), device="cpu", batch_size=4)
    other = replace(setup, beside_weights={**setup.beside_weights, "chat_template.jinja": "another"})

    def first_pass(of: WorkerSetup) -> int:
        with closing(Worker(of).events(Score(key="k", recipe=recipe, items=SEARCH, batch_size=4))) as events:
            event = next(events)
            assert isinstance(event, Progress)
            return event.step

    assert "tokenizer.json" in setup.beside_weights
    assert [first_pass(each) for each in (setup, setup, other)] == [1, 2, 1]


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"0", lambda _: b"", None])
def test_a_checkpoint_that_is_damaged_or_gone_is_not_used(
    opened: Open, tmp_path: Path, change: Callable[[bytes], bytes] | None
) -> None:
    cut_short(opened()[0])
    (path,) = kept(tmp_path)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    checkpoints, evaluator = opened()
    finish(checkpoints.score(candidate(), SEARCH))
    assert evaluator.made == list(range(1, 11))


def test_where_nothing_can_be_written_the_evaluation_ends_without_a_checkpoint(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        told, found = finish(opened()[0].score(candidate(), SEARCH))
    assert found == ContinuedScores(scores=SCORES)
    assert told == [3, 6, 9]
    assert "the evaluation has no checkpoint" in caplog.text


def test_nothing_is_kept_of_a_candidate_that_fails(opened: Open, tmp_path: Path) -> None:
    checkpoints, _ = opened(fails_at=8)
    with pytest.raises(MergeError):
        finish(checkpoints.score(candidate(), SEARCH))
    assert len(kept(tmp_path)) == 1
    checkpoints.discard()
    assert kept(tmp_path) == []
