"""The Evaluator protocol: scores candidates. With it the protocols of what an evaluator may be able to do besides."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from evomerge.evaluation.scores import Scores
from evomerge.packs.items import ItemBlock, Split
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
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
        skeleton: returns the live model with whatever weights it has, without merging: candidates of one depth share
            one; None where there is one for all.
    """

    key: str
    params: Mapping[str, Any]
    recipe: Recipe
    model: Callable[[], PreTrainedModel]
    base: Callable[[], PreTrainedModel] | None = None
    skeleton: Callable[[], PreTrainedModel] | None = None

    def reference(self) -> PreTrainedModel:
        """The live model with the weights of the base, or of the candidate where there is no base."""
        return self.model() if self.base is None else self.base()


@dataclass(frozen=True)
class CalibrationText:
    """One item as text that a source is good at.

    Attributes:
        tokens: the token ids of prompt and right answer.
        answer: the position where the answer starts; 0 where all of it counts.
        others: of an item with several options, the same prompt with each wrong one; nothing otherwise.
    """

    tokens: tuple[int, ...]
    answer: int
    others: tuple[CalibrationText, ...] = ()

    def cut(self, length: int) -> CalibrationText:
        """The last tokens of a text that is longer than `length`, where the answer is; the other options likewise."""
        surplus = max(0, len(self.tokens) - length)
        others = tuple(other.cut(length) for other in self.others)
        return CalibrationText(self.tokens[surplus:], max(0, self.answer - surplus), others)

    def counted(self, token_mask: str) -> range:
        """The positions that count.

        They are `all`, those that predict a token of the `answer`, which begin one before it, or the `first` of these,
        at which no token of the answer has been read; a text that is answer from its start has no such position.
        """
        length = len(self.tokens)
        if token_mask == "all":
            return range(length)
        predicting = range(max(0, self.answer - 1), length - 1)
        if token_mask == "first":
            return predicting[:1] if self.answer else predicting[:0]
        return predicting


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
        """The division of the items into those that are searched on and those that are held out."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Task -> its weight in the objective, for every task."""

    def score(self, candidate: Candidate, items: ItemBlock) -> Scores: ...


@dataclass(frozen=True, kw_only=True)
class ScoringStep:
    """A step of an evaluation.

    Attributes:
        step, steps: the number of steps that were made, of how many.
        state: reads what has been found out so far, from which `ContinuableEvaluator.score_by_steps` continues. To be
            called before the next step.
    """

    step: int
    steps: int
    state: Callable[[], bytes]


@runtime_checkable
class ContinuableEvaluator(Protocol):
    """An evaluator that scores in steps, and continues behind those that an attempt before has made."""

    def score_by_steps(
        self, candidate: Candidate, items: ItemBlock, state: bytes | None = None
    ) -> Generator[ScoringStep, None, Scores]:
        """`Evaluator.score`, with a moment after each step. The scores are those of `score` to the last bit.

        Args:
            state: of an attempt before with the same candidate and items; bytes of anything else are not used.
        """
        ...


@runtime_checkable
class BatchedEvaluator(Protocol):
    """An evaluator that runs the model in batches. The size is found once per study and then the same everywhere."""

    batch_size: int | None

    def find_batch_size(self, model: PreTrainedModel) -> int: ...


@dataclass(frozen=True)
class HarnessScores:
    """Conditions under which lm-eval's own command gives a model the scores that it has here.

    Attributes:
        one_by_one: only with batches of one request.
        never: in no batches, as the model's state follows the order of the requests, which lm-eval chooses.
    """

    one_by_one: bool = False
    never: bool = False


@runtime_checkable
class ModelEvaluator(Protocol):
    """An evaluator that can say before a search whether a model can be scored."""

    def check_requests(self, model: PreTrainedModel) -> Sequence[str]:
        """Build and encode every request, and ask the metrics for a number.

        Args:
            model: of the base; its weights are not read, it may be on the meta device.

        Returns:
            Warnings about requests that can be scored, but may not be meant.

        Raises:
            InvalidInput: names the task and the item.
        """

    def check_model(self, model: PreTrainedModel) -> None:
        """Run a live model on made-up tokens at the lengths of the requests.

        Raises:
            InvalidInput: its scores would mean nothing, or it cannot run at all.
        """

    def harness_scores(self, model: PreTrainedModel) -> HarnessScores:
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
