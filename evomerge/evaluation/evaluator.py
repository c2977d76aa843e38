"""What it means to score a merge: the Evaluator protocol and the plain values that pass through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from evomerge.recipe import Recipe

Part = Literal["calibration", "search", "held_out"]


@dataclass(frozen=True)
class Split:
    """Which items of each task belong to which part. Fixed when the study is created and stored in it.

    Attributes:
        parts: part -> task -> item ids (indices into the task's documents) in the study's fixed, seeded order.
        digests: part -> task -> digest over the contents of these items, so that changed data is noticed.
    """

    parts: Mapping[str, Mapping[str, tuple[int, ...]]]
    digests: Mapping[str, Mapping[str, str]]

    def items(self, block: ItemBlock) -> dict[str, tuple[int, ...]]:
        """The item ids of a block, by task."""
        return {task: ids[slice(*block.positions(len(ids)))] for task, ids in self.parts[block.part].items()}


@dataclass(frozen=True)
class ItemBlock:
    """A block of the items of a part: positions [start, stop) of every task's fixed order. The default is all of it.

    With `of`, start and stop count in shares of each task: `ItemBlock("search", 2, 3, of=10)` is the third tenth of
    every task, however many items it has. Shares are rounded up, so that the first ones have an item of every task.
    """

    part: Part
    start: int = 0
    stop: int | None = None
    of: int | None = None

    def positions(self, items: int) -> tuple[int, int | None]:
        """First position, and the one after the last, in a task of so many items."""
        if self.of is None:
            return self.start, self.stop
        stop = self.of if self.stop is None else self.stop
        return -(-items * self.start // self.of), -(-items * stop // self.of)


@dataclass(frozen=True)
class TaskScores:
    """The outcome of one task.

    Attributes:
        metric: name of the metric as lm-eval prints it, without the filter.
        higher_is_better: direction of the metric, as the task declares it.
        items: item ids, in the order of the block that was scored.
        outcomes: the metric of each item, aligned with `items` (e.g. 0/1 for exact match, a log-likelihood for
            perplexity).
        value: the task's own aggregate over the outcomes.
        stderr: standard error of `value`, None where the aggregate has no closed form for it.
        aggregate: lm-eval's name of how the outcomes become `value`, "custom" where it is not known: what a
            comparison on resampled items recomputes the value with, see `evomerge.evaluation.aggregates`.
        weights: of the items (words or bytes), aligned with `items`; None where the aggregate has none.
        gold: log-probability of each item's right answer, aligned with `items`; None where the task has none to choose
            or to read. A smooth companion of coarse metrics; it is not kept with the outcomes, and not compared.
    """

    metric: str
    higher_is_better: bool
    items: tuple[int, ...]
    outcomes: tuple[float, ...]
    value: float
    stderr: float | None
    aggregate: str = "custom"
    weights: tuple[float, ...] | None = None
    gold: tuple[float, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Scores:
    """Per-item outcomes by task, from which every aggregate, standard error and paired test is computed."""

    tasks: Mapping[str, TaskScores]
    seconds: Mapping[str, float]
    tokens: int = 0


@dataclass(frozen=True)
class Candidate:
    """One merge to be scored.

    Attributes:
        key: names the trial in logs.
        params: the trial's params; empty for baselines.
        recipe: what is merged.
        model: materialises the merge on first call and returns the live model, so that an evaluator that needs no
            model never pays for one.
        base: returns the live model with the weights of the base instead, so that what an evaluator finds out about the
            model does not depend on the candidate at hand; None where only `model` is there.
    """

    key: str
    params: Mapping[str, Any]
    recipe: Recipe
    model: Callable[[], Any]
    base: Callable[[], Any] | None = None

    def reference(self) -> Any:
        """The live model with the weights of the base, or of the candidate where there is no base."""
        return self.model() if self.base is None else self.base()


@dataclass(frozen=True)
class CalibrationText:
    """One item as text that a source is good at.

    Attributes:
        tokens: the token ids of prompt and right answer.
        answer: the position where the answer starts; 0 where all of it counts.
    """

    tokens: tuple[int, ...]
    answer: int


class Evaluator(Protocol):
    """Scores candidates. One instance lives in each worker; it is built once and used for every candidate.

    `score` must be a pure function of (candidate's weights or params, items): the same twice, on every worker, in any
    order, and it must not touch the global random generators. Whatever it raises becomes a failed trial.
    """

    @property
    def fingerprint(self) -> str:
        """Digest of everything that determines a score besides the weights: tasks, prompts, data, settings."""

    @property
    def split(self) -> Split:
        """Which items are searched on and which are held out."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Task -> its weight in the objective, for every task."""

    def score(self, candidate: Candidate, items: ItemBlock) -> Scores: ...


@runtime_checkable
class BatchedEvaluator(Protocol):
    """An evaluator that runs the model in batches. The size is found once per study and then the same everywhere."""

    batch_size: int | None

    def find_batch_size(self, model: Any) -> int: ...


@dataclass(frozen=True)
class HarnessScores:
    """Under what conditions lm-eval's own command gives a model the scores that it has here.

    Attributes:
        one_by_one: only with batches of one request.
        never: in no batches, as the model's state follows the order of the requests, which lm-eval chooses.
    """

    one_by_one: bool = False
    never: bool = False


@runtime_checkable
class ModelEvaluator(Protocol):
    """An evaluator that can say before a search whether a model can be scored."""

    def check_requests(self, model: Any) -> None:
        """Build and encode every request, and ask the metrics for a number.

        Args:
            model: of the base; its weights are not read, it may be on the meta device.

        Raises:
            InvalidInput: names the task and the item.
        """

    def check_model(self, model: Any) -> None:
        """Run a live model on made-up tokens at the lengths of the requests.

        Raises:
            InvalidInput: its scores would mean nothing, or it cannot run at all.
        """

    def harness_scores(self, model: Any) -> HarnessScores:
        """Run a live model on made-up tokens to find out when lm-eval's own scores of it are those of `score`."""


@runtime_checkable
class CalibratingEvaluator(Protocol):
    """An evaluator that has text for merges that are trained."""

    def calibration(self, task: str, items: int) -> list[CalibrationText]:
        """Up to so many items of the task's calibration part, in the study's fixed order, with their right answers.

        Raises:
            InvalidInput: the task does not exist, or has no calibration items.
        """

    def read_calibration(self, file: Path, items: int) -> list[CalibrationText]:
        """Up to so many texts of a file: `.jsonl` with `text`, or `prompt` and `completion`; else one per line.

        Raises:
            InvalidInput: the file is missing, empty or malformed.
        """
