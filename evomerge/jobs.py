"""Jobs, their results and the setup of workers: the plain values that controller and workers send each other.

`with_progress` turns the steps of a job into the progress that is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from evomerge.evaluation.evaluator import HarnessScores
from evomerge.evaluation.scores import Scores
from evomerge.methods import MethodInfo
from evomerge.packs.items import ItemBlock, Split
from evomerge.recipe import ModelRef, Recipe
from evomerge.sanity.sanity_figures import SanityFigures
from evomerge.spec import Calibration

Step = TypeVar("Step")
Returned = TypeVar("Returned")

Products = tuple[tuple[float, ...], ...]
"""[n, n], symmetric: <tau_i, tau_j> of n task vectors."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """Everything that a worker is built from: plain data, but for code that the caller has added; sent once.

    Attributes:
        evaluator: name or path of a pack, or the name of an evaluator class.
        settings: settings of an evaluator class, or the engine of a pack.
        split: the study's item split; None lets the evaluator compute it (at creation).
        batch_size: the study's batch size; None lets the evaluator find it (at creation).
        bounds: param -> (low, high), for analytic evaluators.
        gpus: how many GPUs, or what share of one, the worker holds.
        neighbours: workers of the run that may be on one machine with it, itself included.
        shared: name of the tensors that they have in common, see `SharedTensors`; None: each has its own.
        artifacts: the study's folder of artifacts, where the files of recipes lie, which all workers have to see; or
            the URL of an object store.
        patience: seconds that a store of artifacts is waited for.
        ingredients: number of merges that memory was planned for as sources of other merges.
        need: the `MemoryNeed` that the sources were placed by, as plain data; None: a worker counts the sources alone.
        logs: folder of the logs of workers; None: they keep none.
        checkpoint: seconds between two checkpoints of an evaluation.
        beside_weights: name -> digest of the files beside the base's weights.
        evaluators, methods: of what the caller has added to `EVALUATORS` and `METHODS`, for workers in other processes,
            the class of the spec's evaluator and all methods.
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
    neighbours: int = 1
    shared: str | None = None
    artifacts: str | None = None
    patience: float = 0.0
    ingredients: int = 0
    need: Mapping[str, int] | None = None
    logs: str | None = None
    checkpoint: float = 60.0
    beside_weights: Mapping[str, str] = field(default_factory=dict)
    evaluators: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[MethodInfo, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score one recipe on a block of items.

    Attributes:
        key: identifies the job among those in flight, e.g. "toy/12".
        attempt: 1 for the first try.
        digests: also return a digest per merged tensor, against which an export is verified.
        batch_size: the study's; None where the evaluator has none.
        worker: the one that is preferred, because it has these weights in memory.
    """

    streams: ClassVar[bool] = True

    key: str
    recipe: Recipe
    items: ItemBlock
    params: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    digests: bool = False
    batch_size: int | None = None
    worker: str | None = None


@dataclass(frozen=True)
class FindBatchSize:
    """Find the batch size for this model on this kind of device. Done once per study, before anything is scored."""

    streams: ClassVar[bool] = False

    key: str
    recipe: Recipe
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a merge on the calibration texts of its sources.

    Attributes:
        recipe: what the training starts from.
        settings: of the training, such as `evomerge.training.DamSettings`, as plain data.
        calibration: source name -> its texts; a source without an entry teaches nothing.
        trainer: its name in `evomerge.trainers.TRAINERS`.
    """

    streams: ClassVar[bool] = True

    key: str
    recipe: Recipe
    settings: Mapping[str, Any]
    calibration: Mapping[str, Calibration]
    attempt: int = 1
    trainer: str = "dam"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure statistics of one source on its calibration texts.

    Attributes:
        kind: of the statistics, a name in `evomerge.statistics.measurement.KINDS`.
        source: an expert or the base.
        settings: of the measurement, a `MeasurementSettings` as plain data.
    """

    streams: ClassVar[bool] = True

    key: str
    kind: str
    source: ModelRef
    calibration: Calibration
    settings: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1


@dataclass(frozen=True)
class Multiply:
    """Take the inner products of the task vectors of all experts, tensor by tensor."""

    streams: ClassVar[bool] = False

    key: str
    attempt: int = 1


@dataclass(frozen=True)
class Probe:
    """Take the sanity probe of a merge or a source, see `evomerge.sanity`."""

    streams: ClassVar[bool] = False

    key: str
    recipe: Recipe
    attempt: int = 1


Job = (
    Score | FindBatchSize | Train | Measure | Multiply | Probe
)  # `streams`: whether it sends its `Progress` before the outcome


@dataclass(frozen=True)
class TensorDigests:
    """The weights that were scored: a digest per tensor, and the kind of device that merged them.

    Another kind of device may round the last bit of a sum differently. Studies of earlier versions have the first word
    of it alone, which is another kind, too: the processor or the GPU may have been another one.
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
    """The batch size, None for evaluators that do not run a model in batches, and when lm-eval gives our scores."""

    batch_size: int | None
    harness_scores: HarnessScores = field(default_factory=HarnessScores)


@dataclass(frozen=True)
class Trained:
    """A merge was trained.

    Attributes:
        recipe: the result; its coefficients lie in a file among the study's artifacts.
        losses: source -> (loss before, loss at the end), both on the source's calibration texts.
    """

    recipe: Recipe
    losses: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Measured:
    """A source was measured, now or before. `digest` is that of the file, among the study's artifacts."""

    digest: str


@dataclass(frozen=True)
class Multiplied:
    """Task vectors were multiplied. `products` has for each merged tensor <tau_i, tau_j>, experts in their order."""

    products: Mapping[str, Products]


@dataclass(frozen=True)
class Probed:
    """A model was probed."""

    figures: SanityFigures


@dataclass(frozen=True)
class Failed:
    """A job that was not done.

    Attributes:
        crashed: its worker, or the worker's device, went down with it, and the candidate may have caused that; the job
            is tried again, as its next attempt.
        lost: its machine was lost (a node died or was pre-empted), which says nothing of the candidate; the job is
            tried again, as the same attempt.
        away: a service or store that it needs is away, or a disk or a network file system of its machine is out of
            order, which says nothing of the candidate either; the job is tried again, as the same attempt, until the
            run stops.
        invalid: the user's input cannot be used; no candidate would fare better, unless the fault is its own after all.
    """

    reason: str
    crashed: bool = False
    lost: bool = False
    away: bool = False
    invalid: bool = False

    @property
    def by_machine(self) -> bool:
        """Whether something else than the job may be at fault, so that it is tried again."""
        return self.crashed or self.lost or self.away


Result = Scored | Found | Trained | Measured | Multiplied | Probed | Failed

GRADIENT_FORWARDS = 3  # forward passes that one with gradients costs: the backward pass costs two


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources used by a job, a trial or a whole search.

    Attributes:
        candidates: merges that were scored to choose it.
        items: items that were scored, each time that one was.
        forward_tokens: tokens that a model read without gradients.
        gradient_tokens: tokens that a model read forward and backward.
        seconds: of a worker's time.
        gpu_seconds: of these, how many a GPU was held.
        peak_bytes: the largest memory of a worker's process, or of its GPU where it has one, meanwhile.
    """

    candidates: int = 0
    items: int = 0
    forward_tokens: int = 0
    gradient_tokens: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            candidates=self.candidates + other.candidates,
            items=self.items + other.items,
            forward_tokens=self.forward_tokens + other.forward_tokens,
            gradient_tokens=self.gradient_tokens + other.gradient_tokens,
            seconds=self.seconds + other.seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )

    def forwards(self, scoring: Cost) -> float | None:
        """The cost in forward passes of one item, with which a search and a training can be compared.

        Tokens that were read without gradients count once, with gradients `GRADIENT_FORWARDS` times. Where scoring
        reads no tokens, these are the items that were scored.

        Args:
            scoring: of items of the search, any number of them: it says how many tokens one has on average.

        Returns:
            None where nothing was scored.
        """
        if not scoring.items:
            return None
        if not scoring.forward_tokens:
            return float(self.items)
        tokens = self.forward_tokens + GRADIENT_FORWARDS * self.gradient_tokens
        return tokens * scoring.items / scoring.forward_tokens


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a long job: steps of a training with current losses by name, texts that have been measured, or passes
    of an evaluation whose answers are kept."""

    key: str
    step: int
    steps: int
    losses: Mapping[str, float] = field(default_factory=dict)
    unit: Literal["step", "text", "pass"] = "step"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a job, with its key and attempt, seconds by phase, the worker's name and the cost.

    Attributes:
        losses: number of times that the machine was lost under it, in this run.
        checkpoints: files among the artifacts that are of no use once the result is stored.
    """

    key: str
    attempt: int
    result: Result
    seconds: Mapping[str, float]
    worker: str
    cost: Cost = field(default_factory=Cost)
    losses: int = 0
    checkpoints: tuple[str, ...] = ()


def with_progress(
    steps: Generator[Step, None, Returned], progress_of: Callable[[Step], Progress]
) -> Generator[Progress, None, Returned]:
    """Go through the steps of a job, telling each as progress; returns what the steps return."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            returned: Returned = end.value
            return returned
        yield progress_of(step)
