"""The worker: holds the sources and an evaluator, and does one job at a time."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import InvalidInput
from evomerge.evaluation import EVALUATORS
from evomerge.evaluation.calibration_texts import calibration_texts
from evomerge.evaluation.evaluator import (
    BatchedEvaluator,
    Candidate,
    ContinuableEvaluator,
    Evaluator,
    ModelEvaluator,
)
from evomerge.evaluation.factory import build_evaluator
from evomerge.evaluation_checkpoints import ContinuedScores, EvaluationCheckpoints
from evomerge.job_faults import failure_of, is_from_outside
from evomerge.job_meter import JobMeter
from evomerge.jobs import (
    Cost,
    Failed,
    FindBatchSize,
    Found,
    Job,
    Measure,
    Measured,
    Multiplied,
    Multiply,
    Outcome,
    Probe,
    Probed,
    Progress,
    Result,
    Score,
    Scored,
    TensorDigests,
    Train,
    Trained,
    WorkerSetup,
    with_progress,
)
from evomerge.logs.capture import captured
from evomerge.logs.log_file import LogFile
from evomerge.methods import METHODS
from evomerge.object_store.artifact_folder import ArtifactFolder, artifact_path
from evomerge.object_store.remote_folder import SilentPatience
from evomerge.object_store.scratch_folder import scratch_folder
from evomerge.recipe import Recipe, all_files, single_source
from evomerge.vllm_engine.engine_settings import gpu_share

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from evomerge.bank import WeightBank
    from evomerge.bank.shared_tensors import SharedTensors
    from evomerge.sanity.sanity_probe import SanityProbe


@dataclass(frozen=True, kw_only=True)
class _Done:
    """The result of a job, beside what the worker measures of every job.

    Attributes:
        cost: tokens, items and candidates; seconds where the job has measured its own.
        seconds: by phases of its own.
        before: seconds of the attempts before.
        checkpoints: files among the artifacts that are of no use once the result is stored.
    """

    result: Result
    cost: Cost = field(default_factory=Cost)
    seconds: Mapping[str, float] = field(default_factory=dict)
    before: float = 0.0
    checkpoints: tuple[str, ...] = ()


class Worker:
    """Does jobs, one after another. Built once; nothing that a job needs is built again for the next one."""

    def __init__(self, setup: WorkerSetup, name: str = "") -> None:
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._setup = setup
        self._bank: WeightBank | None = None
        self._shared: SharedTensors | None = None
        self._products: Multiplied | None = None
        self._probes: dict[int, SanityProbe] = {}  # by identity of the live model: a layer path has one of its own
        self._merge_seconds = 0.0
        self._artifacts = (
            ArtifactFolder(artifact_path(setup.artifacts), SilentPatience(setup.patience)) if setup.artifacts else None
        )
        self._log = LogFile(Path(setup.logs) if setup.logs else None, self.name)
        EVALUATORS.update(setup.evaluators)
        METHODS.update({method.name: method for method in setup.methods})
        with captured(self._log, "start"):
            self.evaluator: Evaluator = build_evaluator(
                setup.evaluator,
                base=setup.base,
                seed=setup.seed,
                settings=setup.settings,
                bounds=setup.bounds,
                split=setup.split,
                batch_size=setup.batch_size,
                device=setup.device,
                allow=setup.allow,
            )
        self._checkpoints = self._open_checkpoints()

    def _open_checkpoints(self) -> EvaluationCheckpoints | None:
        """The checkpoints of long evaluations; None where nothing can be continued, or there is no place for them."""
        setup, evaluator = self._setup, self.evaluator
        if not setup.artifacts or not isinstance(evaluator, ContinuableEvaluator):
            return None
        artifacts = ArtifactFolder(artifact_path(setup.artifacts))
        return EvaluationCheckpoints(
            evaluator,
            artifacts,
            seconds=setup.checkpoint,
            device=setup.device,
            beside_weights=setup.beside_weights,
        )

    @property
    def bank(self) -> WeightBank:
        """The resident sources, opened on first use: an analytic evaluator never needs them."""
        if self._bank is None:
            from evomerge.bank import open_bank
            from evomerge.bank.memory import MemoryNeed
            from evomerge.bank.shared_tensors import SharedTensors

            setup = self._setup
            self._shared = self._shared or (SharedTensors(setup.shared) if setup.shared else None)
            self._bank = open_bank(
                setup.base,
                setup.experts,
                dtype=setup.dtype,
                device=setup.device,
                allow=setup.allow,
                files=self._artifacts.files if self._artifacts else None,
                ingredients=setup.ingredients,
                need=None if setup.need is None else MemoryNeed(**setup.need),
                gpus=setup.gpus,
                neighbours=setup.neighbours,
                engine=gpu_share(setup.settings),
                shared=self._shared,
            )
        return self._bank

    @property
    def _device(self) -> torch.device | None:
        """The device of the sources, where they are open."""
        return None if self._bank is None else self._bank.device

    def close(self) -> None:
        """Give up what the workers of this machine share, which the last one removes. No job may follow."""
        if self._shared is not None:
            self._shared.close()

    def renewed(self) -> Worker:
        """A worker of the same setup with nothing of this one, whose job was interrupted somewhere."""
        self._bank = None  # its memory is needed for the new one
        return Worker(self._setup, self.name)

    def run(self, job: Job) -> Outcome:
        """Do a job. Failure is a value: whatever merging or scoring raises comes back as `Failed`."""
        for event in self.events(job):
            if isinstance(event, Outcome):
                return event
        raise RuntimeError(f"job {job.key!r} ended without an outcome")

    def events(self, job: Job) -> Generator[Progress | Outcome, None, None]:
        """Do a job, telling how far it is: any number of `Progress`, and the outcome as the last event.

        What it prints and logs, and why it failed, is in the worker's log.
        """
        with closing(self._events(job)) as events:
            while True:
                with captured(self._log, job.key):
                    event = next(events)
                if isinstance(event, Outcome):
                    self._log.write(_described(event), job=job.key)
                    yield event
                    return
                yield event

    def _events(self, job: Job) -> Generator[Progress | Outcome, None, None]:
        meter = JobMeter(self._device, self._setup.gpus)
        self._merge_seconds = 0.0
        try:
            done = yield from self._do(job)
        except BaseException as error:
            if is_from_outside(error):
                raise
            done = _Done(result=self._failed(job, error))
        total = done.before + meter.seconds
        before = {"before": done.before} if done.before else {}
        yield Outcome(
            key=job.key,
            attempt=job.attempt,
            result=done.result,
            seconds={"merge": self._merge_seconds, "total": total, **before, **done.seconds},
            worker=self.name,
            cost=meter.cost(done.cost, total, self._device),
            checkpoints=done.checkpoints,
        )

    def _do(self, job: Job) -> Generator[Progress, None, _Done]:
        if isinstance(job, Score):
            return (yield from self._score(job))
        if isinstance(job, Train):
            return (yield from self._train(job))
        if isinstance(job, Measure):
            return (yield from self._measure(job))
        if isinstance(job, Probe):
            return self._probe(job)
        return self._multiply() if isinstance(job, Multiply) else self._find(job)

    def _failed(self, job: Job, error: BaseException) -> Failed:
        self._log.write("".join(traceback.format_exception(error)), level="error", job=job.key)
        failed = failure_of(error)
        if isinstance(job, Score) and not (failed.crashed or failed.away) and self._checkpoints is not None:
            self._checkpoints.discard()
        return failed

    def _train(self, job: Train) -> Generator[Progress, None, _Done]:
        from evomerge.trainers import TrainingStep, find_trainer, may_be_checkpoint
        from evomerge.training import TrainingInputs

        artifacts = self._artifacts_for("a training")
        artifacts.fetch_files(all_files(job.recipe))
        texts = {name: calibration_texts(self.evaluator, calibration) for name, calibration in job.calibration.items()}
        with self.bank.borrow() as (model, live), scratch_folder(artifacts, "training") as checkpoints:
            checkpoints.fetch(name for name in checkpoints.names() if may_be_checkpoint(name, job.trainer))
            inputs = TrainingInputs(
                model=model,
                live=live,
                weights=self.bank.weights,
                texts=texts,
                initial=job.recipe,
                seed=self._setup.seed,
                files=artifacts.files,
                checkpoints=checkpoints.path,
            )

            def progress_of(step: TrainingStep) -> Progress:
                checkpoints.keep()
                return Progress(key=job.key, step=step.step, steps=step.steps, losses=step.reported)

            trained = yield from with_progress(find_trainer(job.trainer)(inputs, job.settings), progress_of)
            artifacts.keep_files(all_files(trained.recipe))
            checkpoints.keep()
        losses = {name: (trained.before[name], trained.after[name]) for name in trained.after}
        cost = Cost(
            forward_tokens=trained.forward_tokens, gradient_tokens=trained.gradient_tokens, seconds=trained.seconds
        )
        kept = tuple(checkpoints.place_of(each) for each in trained.checkpoints)
        return _Done(result=Trained(trained.recipe, losses), cost=cost, checkpoints=kept)

    def _measure(self, job: Measure) -> Generator[Progress, None, _Done]:
        from evomerge.statistics.measurement import (
            MeasuredModel,
            MeasurementInputs,
            MeasurementSettings,
            MeasurementStep,
            find_kind,
            measure,
            read_index,
        )

        kind, settings = find_kind(job.kind), MeasurementSettings.model_validate(dict(job.settings))
        artifacts = self._artifacts_for("a measurement")
        catalogue = self.bank.base.catalogue
        names = tuple(entry.name for entry in catalogue.mergeable)
        self._materialize(single_source(self._setup.base, job.source, names, self._setup.dtype))
        with self.bank.borrow() as (model, live), scratch_folder(artifacts, "statistics") as sums:
            inputs = MeasurementInputs(
                kind=kind,
                base=self._setup.base,
                source=job.source,
                measured=MeasuredModel(model=model, live=live, catalogue=catalogue),
                texts=calibration_texts(self.evaluator, job.calibration),
                seed=self._setup.seed,
                files=artifacts.files,
                folder=sums.path,
                settings=settings,
            )
            sums.fetch(f"{inputs.key}{suffix}" for suffix in (".json", ".safetensors"))
            if (known := read_index(sums.path / f"{inputs.key}.json")) is not None:
                artifacts.fetch_files([known.digest])

            def progress_of(step: MeasurementStep) -> Progress:
                sums.keep()
                return Progress(key=job.key, step=step.step, steps=step.steps, unit="text")

            found = yield from with_progress(measure(inputs), progress_of)
            artifacts.keep_files([found.digest])
            sums.keep()
        cost = Cost(forward_tokens=found.forward_tokens, gradient_tokens=found.gradient_tokens, seconds=found.seconds)
        return _Done(result=Measured(found.digest), cost=cost)

    def _probe(self, job: Probe) -> _Done:
        from evomerge.sanity.probed_merge import probe_merge

        if self._artifacts is not None:
            self._artifacts.fetch_files(all_files(job.recipe))
        figures = probe_merge(self.bank, job.recipe, self._probes, allow=self._setup.allow)
        return _Done(result=Probed(figures), cost=Cost(forward_tokens=figures.tokens))

    def _multiply(self) -> _Done:
        from evomerge.statistics.products import task_vector_products

        if self._products is None:
            weights, names = self.bank.weights, [entry.name for entry in self.bank.base.catalogue.mergeable]
            experts = [weights[expert.name] for expert in self._setup.experts]
            self._products = Multiplied(task_vector_products(weights[self._setup.base.name], experts, names))
        return _Done(result=self._products)

    def _artifacts_for(self, work: str) -> ArtifactFolder:
        if self._artifacts is None:
            raise InvalidInput(f"{work} needs the folder of the study's artifacts, to leave its files there")
        return self._artifacts

    def _find(self, job: FindBatchSize) -> _Done:
        if not isinstance(self.evaluator, BatchedEvaluator):
            return _Done(result=Found(None))
        model = self._materialize(job.recipe)
        size = self.evaluator.find_batch_size(model)
        if not isinstance(self.evaluator, ModelEvaluator):
            return _Done(result=Found(size))
        return _Done(result=Found(size, self.evaluator.harness_scores(model)))

    def _score(self, job: Score) -> Generator[Progress, None, _Done]:
        if job.batch_size is not None and isinstance(self.evaluator, BatchedEvaluator):
            self.evaluator.batch_size = job.batch_size
        candidate = Candidate(
            key=job.key,
            params=job.params,
            recipe=job.recipe,
            model=lambda: self._materialize(job.recipe),
            base=lambda: self.bank.base_model(job.recipe.layers),
            skeleton=lambda: self.bank.live_model(job.recipe.layers),
        )
        if self._checkpoints is None:
            continued = ContinuedScores(scores=self.evaluator.score(candidate, job.items))
        else:
            continued = yield from with_progress(
                self._checkpoints.score(candidate, job.items),
                lambda step: Progress(key=job.key, step=step.step, steps=step.steps, unit="pass"),
            )
        scores = continued.scores
        items = sum(len(task.items) for task in scores.tasks.values())
        digests = self._digests(job.recipe) if job.digests else None
        return _Done(
            result=Scored(scores, digests),
            cost=Cost(candidates=1, items=items, forward_tokens=scores.tokens),
            seconds=scores.seconds,
            before=continued.seconds,
            checkpoints=(continued.checkpoint,) if continued.checkpoint else (),
        )

    def _digests(self, recipe: Recipe) -> TensorDigests:
        return TensorDigests(self.bank.device_kind, self.bank.live_digests(recipe))

    def _materialize(self, recipe: Recipe) -> PreTrainedModel:
        started = time.perf_counter()
        if self._artifacts is not None:
            self._artifacts.fetch_files(all_files(recipe))
        try:
            return self.bank.materialize(recipe)
        finally:
            self._merge_seconds += time.perf_counter() - started


def _described(outcome: Outcome) -> str:
    """One line of the log on a job that is over."""
    result, seconds = outcome.result, outcome.seconds.get("total", 0.0)
    ended = f"failed: {result.reason}" if isinstance(result, Failed) else type(result).__name__.lower()
    return f"attempt {outcome.attempt}, {seconds:.2f} s: {ended}"
