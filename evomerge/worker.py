"""The worker: holds the sources and an evaluator, and does one job at a time. Jobs and outcomes are plain data."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evomerge.errors import EvomergeError, InvalidInput, unknown_name
from evomerge.evaluation import find_evaluator, known_evaluators, known_packs, load_pack
from evomerge.evaluation.evaluator import (
    BatchedEvaluator,
    CalibratingEvaluator,
    CalibrationText,
    Candidate,
    Evaluator,
    ItemBlock,
    Scores,
    Split,
)
from evomerge.recipe import ModelRef, Recipe
from evomerge.spec import Calibration

if TYPE_CHECKING:
    from evomerge.bank import WeightBank


_STATUS = Path("/proc/self/status")
_PEAK_RESET = Path("/proc/self/clear_refs")


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


@dataclass(frozen=True)
class Train:
    """Train the coefficients of a merge (DAM) on the calibration texts of its sources.

    Attributes:
        recipe: what the training starts from.
        settings: of the training, see `evomerge.training.DamSettings`.
        calibration: source name -> its texts; a source without an entry teaches nothing.
    """

    key: str
    recipe: Recipe
    settings: Mapping[str, Any]
    calibration: Mapping[str, Calibration]
    attempt: int = 1


Job = Score | FindBatchSize | Train


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
class Trained:
    """A merge was trained.

    Attributes:
        recipe: the result; its coefficients lie in a file among the study's artifacts.
        losses: source -> (loss of the uniform average, loss at the end), both on the source's calibration texts.
        checkpoint: file of its last state, of no use once the result is stored; None where none was kept.
    """

    recipe: Recipe
    losses: Mapping[str, tuple[float, float]]
    checkpoint: str | None = None


@dataclass(frozen=True)
class Failed:
    """A job that was not. `infrastructural` failures say nothing of the candidate and are tried again elsewhere."""

    reason: str
    infrastructural: bool = False


Result = Scored | Found | Trained | Failed


@dataclass(frozen=True)
class Cost:
    """What something took.

    Attributes:
        candidates: merges that were scored to choose it.
        forward_tokens: tokens that a model read without gradients.
        gradient_tokens: tokens that a model read forward and backward.
        seconds: of a worker's time.
        gpu_seconds: of these, how many a GPU was held.
        peak_bytes: the largest memory of a worker's process, or of its GPU where it has one, meanwhile.
    """

    candidates: int = 0
    forward_tokens: int = 0
    gradient_tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.candidates + other.candidates,
            self.forward_tokens + other.forward_tokens,
            self.gradient_tokens + other.gradient_tokens,
            self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


@dataclass(frozen=True)
class Progress:
    """How far a job is that takes long: steps of a training and its losses by name."""

    key: str
    step: int
    steps: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its key and attempt, the result, seconds by phase, who did it, and what it took."""

    key: str
    attempt: int
    result: Result
    seconds: Mapping[str, float]
    worker: str
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class WorkerSetup:
    """Everything that a worker is built from: plain data, sent once.

    Attributes:
        evaluator: name or path of a pack, or the name of an evaluator class.
        settings: settings of an evaluator class.
        split: the study's item split; None lets the evaluator compute it (at creation).
        batch_size: the study's batch size; None lets the evaluator find it (at creation).
        bounds: param -> (low, high), for analytic evaluators.
        gpus: how many GPUs, or what share of one, the worker holds.
        artifacts: the study's folder of artifacts, where the files of recipes lie. All workers have to see it.
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
    gpus: float = 1.0
    artifacts: str | None = None


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
            self._bank = open_bank(
                setup.base,
                setup.experts,
                dtype=setup.dtype,
                device=setup.device,
                allow=setup.allow,
                files=files_folder(setup.artifacts) if setup.artifacts else None,
            )
        return self._bank

    def run(self, job: Job) -> Outcome:
        """Do a job. Failure is a value: whatever merging or scoring raises comes back as `Failed`."""
        for event in self.events(job):
            if isinstance(event, Outcome):
                return event
        raise RuntimeError(f"job {job.key!r} ended without an outcome")

    def events(self, job: Job) -> Generator[Progress | Outcome, None, None]:
        """Do a job, telling how far it is: any number of `Progress`, and the outcome as the last event."""
        started = time.perf_counter()
        self._merge_seconds = 0.0
        self._forget_peak()
        cost = Cost()
        result: Result
        try:
            if isinstance(job, Train):
                result, cost = yield from self._train(job)
            else:
                result = self._score(job) if isinstance(job, Score) else self._find(job)
        except Exception as error:
            result = Failed(_reason(error), infrastructural=_is_broken_device(error))
        total = time.perf_counter() - started
        seconds = {"merge": self._merge_seconds, "total": total}
        if isinstance(result, Scored):
            seconds.update(result.scores.seconds)
            cost = Cost(candidates=1, forward_tokens=result.scores.tokens)
        yield Outcome(job.key, job.attempt, result, seconds, self.name, self._cost(cost, total))

    def _cost(self, known: Cost, seconds: float) -> Cost:
        """What is known with the time and memory of this process; on a GPU with its memory."""
        seconds = known.seconds or seconds
        device = self._bank.device if self._bank is not None else None
        if device is not None and device.type == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated(device)
            return replace(known, seconds=seconds, gpu_seconds=seconds * self._setup.gpus, peak_bytes=peak)
        return replace(known, seconds=seconds, peak_bytes=_peak_memory())

    def _forget_peak(self) -> None:
        """Let the peak of memory begin anew, so that a job is not charged for what another one took."""
        if self._bank is not None and self._bank.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._bank.device)
        with suppress(OSError):  # not on every system; the peak is then that of the process
            _PEAK_RESET.write_text("5")

    def _train(self, job: Train) -> Generator[Progress, None, tuple[Result, Cost]]:
        from evomerge.training import DamSettings, train_dam

        if self._setup.artifacts is None:
            raise InvalidInput("a training needs the folder of the study's artifacts, to leave its coefficients there")
        texts = {name: self._texts(calibration) for name, calibration in job.calibration.items()}
        with self.bank.borrow() as (model, live):
            training = train_dam(
                model=model,
                live=live,
                weights=self.bank.weights,
                texts=texts,
                initial=job.recipe,
                settings=DamSettings.model_validate(dict(job.settings)),
                seed=self._setup.seed,
                files=files_folder(self._setup.artifacts),
                checkpoints=Path(self._setup.artifacts) / "training",
            )
            while True:
                try:
                    step = next(training)
                except StopIteration as end:
                    trained = end.value
                    break
                penalties = {f"{name} penalty": value for name, value in step.penalties.items()}
                yield Progress(job.key, step.step, step.steps, {**step.losses, **penalties})
        losses = {name: (trained.before[name], trained.after[name]) for name in trained.after}
        cost = Cost(0, trained.forward_tokens, trained.gradient_tokens, trained.seconds)
        return Trained(trained.recipe, losses, str(trained.checkpoint) if trained.checkpoint else None), cost

    def _texts(self, calibration: Calibration) -> Sequence[CalibrationText]:
        return calibration_texts(self.evaluator, calibration)

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


def files_folder(artifacts: str | Path) -> Path:
    """Where the files of recipes lie in a folder of artifacts."""
    return Path(artifacts) / "files"


def calibration_texts(evaluator: Evaluator, calibration: Calibration) -> list[CalibrationText]:
    """The texts that a calibration names.

    Raises:
        InvalidInput: the evaluator has no texts, or not those.
    """
    if not isinstance(evaluator, CalibratingEvaluator):
        raise InvalidInput("this evaluator has no texts to train on; leave the baseline dam out")
    if calibration.task is not None:
        return evaluator.calibration(calibration.task, calibration.items)
    return evaluator.read_calibration(Path(str(calibration.file)), calibration.items)


def _peak_memory() -> int:
    """The largest resident memory of this process since its peak was forgotten, in bytes."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Where there is no /proc: since the process began; in KiB, on macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
