"""The worker: holds the sources and an evaluator, and does one job at a time. Jobs and outcomes are plain data."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evomerge.errors import EvomergeError, InvalidInput, unknown_name
from evomerge.evaluation import find_evaluator, known_evaluators, known_packs, load_pack
from evomerge.evaluation.evaluator import BatchedEvaluator, Candidate, Evaluator, ItemBlock, Scores, Split
from evomerge.recipe import ModelRef, Recipe

if TYPE_CHECKING:
    from evomerge.bank import WeightBank


@dataclass(frozen=True)
class Score:
    """Score one recipe on a block of items.

    Attributes:
        key: identifies the job among those in flight, e.g. "toy/12".
        attempt: 1 for the first try.
        digests: also return a digest per merged tensor, against which an export is verified.
        batch_size: the study's; None where the evaluator has none.
    """

    key: str
    recipe: Recipe
    items: ItemBlock
    params: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    digests: bool = False
    batch_size: int | None = None


@dataclass(frozen=True)
class FindBatchSize:
    """Find the batch size for this model on this kind of device. Done once per study, before anything is scored."""

    key: str
    recipe: Recipe
    attempt: int = 1


Job = Score | FindBatchSize


@dataclass(frozen=True)
class TensorDigests:
    """The weights that were scored: a digest per tensor, and the kind of device that merged them.

    Another kind of device may round the last bit of a sum differently.
    """

    device: str
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Scored:
    """A recipe was scored."""

    scores: Scores
    digests: TensorDigests | None = None


@dataclass(frozen=True)
class Found:
    """The batch size, None for evaluators that do not run a model in batches."""

    batch_size: int | None


@dataclass(frozen=True)
class Failed:
    """A job that was not. `infrastructural` failures say nothing of the candidate and are tried again elsewhere."""

    reason: str
    infrastructural: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its key and attempt, the result, seconds by phase, and who did it."""

    key: str
    attempt: int
    result: Scored | Found | Failed
    seconds: Mapping[str, float]
    worker: str


@dataclass(frozen=True)
class WorkerSetup:
    """Everything that a worker is built from: plain data, sent once.

    Attributes:
        evaluator: name or path of a pack, or the name of an evaluator class.
        settings: settings of an evaluator class.
        split: the study's item split; None lets the evaluator compute it (at creation).
        batch_size: the study's batch size; None lets the evaluator find it (at creation).
        bounds: param -> (low, high), for analytic evaluators.
    """

    base: ModelRef
    experts: tuple[ModelRef, ...]
    dtype: str
    seed: int
    evaluator: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: Split | None = None
    batch_size: int | None = None
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    device: str | None = None


class Worker:
    """Does jobs, one after another. Built once; nothing that a job needs is built again for the next one."""

    def __init__(self, setup: WorkerSetup, name: str = "") -> None:
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._setup = setup
        self._bank: WeightBank | None = None
        self._merge_seconds = 0.0
        self.evaluator: Evaluator = build_evaluator(setup)

    @property
    def bank(self) -> WeightBank:
        """The resident sources, opened on first use: an analytic evaluator never needs them."""
        if self._bank is None:
            from evomerge.bank import open_bank

            setup = self._setup
            self._bank = open_bank(setup.base, setup.experts, dtype=setup.dtype, device=setup.device, allow=setup.allow)
        return self._bank

    def run(self, job: Job) -> Outcome:
        """Do a job. Failure is a value: whatever merging or scoring raises comes back as `Failed`."""
        started = time.perf_counter()
        self._merge_seconds = 0.0
        try:
            result: Scored | Found | Failed = self._score(job) if isinstance(job, Score) else self._find(job)
        except Exception as error:
            result = Failed(_reason(error), infrastructural=_is_broken_device(error))
        total = time.perf_counter() - started
        seconds = {"merge": self._merge_seconds, "total": total}
        if isinstance(result, Scored):
            seconds.update(result.scores.seconds)
        return Outcome(job.key, job.attempt, result, seconds, self.name)

    def _find(self, job: FindBatchSize) -> Found:
        if not isinstance(self.evaluator, BatchedEvaluator):
            return Found(None)
        return Found(self.evaluator.find_batch_size(self._materialize(job.recipe)))

    def _score(self, job: Score) -> Scored:
        if job.batch_size is not None and isinstance(self.evaluator, BatchedEvaluator):
            self.evaluator.batch_size = job.batch_size
        candidate = Candidate(job.key, job.params, job.recipe, lambda: self._materialize(job.recipe))
        scores = self.evaluator.score(candidate, job.items)
        return Scored(scores, self._digests(job.recipe) if job.digests else None)

    def _digests(self, recipe: Recipe) -> TensorDigests:
        return TensorDigests(self.bank.device.type, self.bank.live_digests(recipe))

    def _materialize(self, recipe: Recipe) -> Any:
        started = time.perf_counter()
        try:
            return self.bank.materialize(recipe)
        finally:
            self._merge_seconds += time.perf_counter() - started


def _is_broken_device(error: Exception) -> bool:
    """Whether an accelerator has failed, rather than the candidate: every later call in this process would fail too.

    Running out of its memory is the candidate's own failure and breaks nothing.
    """
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def build_evaluator(setup: WorkerSetup) -> Evaluator:
    """The evaluator of a setup: a class that an installed package offers under that name, or else a pack.

    Raises:
        InvalidInput: there is neither, or its tasks or metrics do not exist.
    """
    classes = known_evaluators()
    if setup.evaluator in classes:
        made = find_evaluator(setup.evaluator)(
            dict(setup.settings), bounds=setup.bounds, seed=setup.seed, split=setup.split
        )
        return cast(Evaluator, made)
    if not Path(setup.evaluator).is_dir() and setup.evaluator not in known_packs():
        raise unknown_name("evaluator", setup.evaluator, [*known_packs(), *classes])
    pack = load_pack(setup.evaluator)
    if setup.settings:
        raise InvalidInput(
            f"evaluator {pack.name!r} is a pack and takes no settings, but the spec gives "
            f"{', '.join(sorted(setup.settings))}; change its evaluator.yaml"
        )
    from evomerge.checkpoints.tokenizer import load_tokenizer
    from evomerge.evaluation.harness import HarnessEvaluator

    return HarnessEvaluator(
        pack,
        load_tokenizer(setup.base, allow=setup.allow),
        split=setup.split,
        seed=setup.seed,
        batch_size=setup.batch_size,
        device=setup.device,
        allow=setup.allow,
    )


def _reason(error: BaseException) -> str:
    """One line that says why a candidate failed, with the place in our code for errors that we did not foresee."""
    message = f"{type(error).__name__}: {error}".strip().splitlines()[0][:400]
    if isinstance(error, EvomergeError):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return message + place
