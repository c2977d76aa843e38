"""The session of a run: a study that is written to, with workers, a batch size, and the scores of the sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from evomerge.baselines.baseline_plans import check_baseline
from evomerge.baselines.named_recipes import (
    NamedRecipe,
    NamedResult,
    record_row,
    score_rows,
    source_rows,
    unfit_source,
)
from evomerge.baselines.planned_training import planned_training
from evomerge.baselines.unlearned_skills import unlearned_skills
from evomerge.charts.dashboard_plots import DashboardPlots
from evomerge.cluster import (
    Executor,
    gpus_of_each,
    ignored_without_ray,
    is_local,
    open_executor,
    worker_count,
    workers_share,
)
from evomerge.errors import Interrupted, StoppedByFailures, first_reason, noted
from evomerge.jobs import Outcome, Progress
from evomerge.logs.run_log import controller_log, note_event
from evomerge.loop.dispatcher import find_batch_size, reason_of
from evomerge.loop.steering import Steering
from evomerge.loop.stop import GO_ON, Stop
from evomerge.objective import Collapsed, Objective, build_objective, task_weights
from evomerge.opening.capacity import memory_of, placement_of
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.opening.measurements import all_measurements
from evomerge.opening.open_study import OpenSearch, open_search
from evomerge.opening.readiness import check_requests
from evomerge.packs.items import ItemBlock
from evomerge.recipe import Recipe
from evomerge.requests.steering_requests import RequestBook
from evomerge.search.ingredients import check_recipe_file
from evomerge.search.warm_start import check_warm_start, has_begun
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.storage import attributes
from evomerge.storage.patience import StoragePatience
from evomerge.storage.secrets import secrets_of
from evomerge.storage.url import run_directory
from evomerge.study.heartbeat import Heartbeat
from evomerge.study.identity import changed_versions
from evomerge.study.search_study import SearchStudy
from evomerge.study.status import Status
from evomerge.study.stored_search import StoredSearch, logs_folder, with_stored_artifacts
from evomerge.telemetry.run_observer import RunObserver, observing
from evomerge.telemetry.tracking import check_trackers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Progress callbacks of a run; each defaults to a no-op.

    Attributes:
        on_trial: receives the study and a copy of each trial of the search that this run has ended, whatever its state.
        on_open: receives the folder of the run, as soon as the study is held and may be written to.
        worker_output: let Ray print here what its workers print; it is in Ray's own logs in any case.
    """

    on_phase: Callable[[str], None] = lambda text: None
    on_status: Callable[[Status], None] = lambda status: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_trial: Callable[[optuna.Study, FrozenTrial], None] = lambda study, trial: None
    on_open: Callable[[Path], None] = lambda folder: None
    worker_output: bool = False


@dataclass(frozen=True, kw_only=True)
class Session:
    """The study, the workers and the scored sources that all stages of a run share.

    Attributes:
        steering: requests from another terminal.
        observer: tells others of the run.
        plots: shows the search in Optuna Dashboard.
        batch_size: of the study; None for an evaluator without batches.
        sources: base and experts as rows.
        references: source name -> its result on the search items.
    """

    opened: OpenSearch
    executor: Executor
    stop: Stop
    steering: Steering
    observer: RunObserver
    listener: Listener
    batch_size: int | None
    objective: Objective
    plots: DashboardPlots
    sources: Sequence[NamedRecipe]
    references: Mapping[str, NamedResult]

    def on_search_status(self, status: Status) -> None:
        """Report the status of the search, and trials that have ended, to the listener and to whom the spec names."""
        self.listener.on_status(status)
        search = self.opened.search
        for trial in search.take_ended():
            self.listener.on_trial(search.study, trial)
        self.observer.status(status, search)
        self.plots.refresh()

    @property
    def stored(self) -> StoredSearch:
        """The study as others read it."""
        return _stored(self.opened)

    def say(self, phase: str) -> None:
        """Report the phase to the listener, and to `evomerge status` by way of the study."""
        _say(self.opened, self.listener, phase)


@contextmanager
def open_session(
    spec: SearchSpec, stop: Stop, *, ray: str | None, listener: Listener, further: Sequence[BaselineSpec] = ()
) -> Iterator[Session]:
    """Check the inputs, open the study, start the workers, and score the sources that have no scores yet.

    Args:
        further: baselines that will be built beside those of the spec.

    Raises:
        EvomergeError: see `evomerge.errors`.
    """
    listener, spec = _noting(listener), with_stored_artifacts(spec)
    inputs = open_inputs(spec)
    for warning in inputs.warnings:
        listener.on_phase(f"warning: {warning}")
    for warning in _refuse_unfit(inputs, (*spec.chosen_baselines, *further)):
        listener.on_phase(f"warning: {warning}")
    if not_applicable := ignored_without_ray(spec.workers, ray):
        listener.on_phase(
            f"warning: without Ray there is one worker, this process; ignored: {', '.join(not_applicable)}"
        )
    workers = worker_count(spec.workers, ray)
    here, shared = workers if is_local(ray) else 1, workers_share(workers, ray)
    gpus = gpus_of_each(spec.workers, here, ray)
    placement_of(inputs, here, gpus=gpus, shared=shared)  # refuses what cannot fit
    patience = StoragePatience(seconds=spec.storage_patience, say=listener.on_phase, check=stop.check)
    with (
        open_search(inputs, workers=workers, patience=patience) as opened,
        controller_log(logs_folder(spec)),
        Steering(RequestBook(opened.storage, spec.name), stop, spec.name).followed() as steering,
        observing(spec, opened.search) as observer,
    ):
        listener.on_open(run_directory(spec.storage_url, spec.name))
        _beat_with(stop, Heartbeat(opened.search))
        for name, (then, now) in changed_versions(opened.search.study).items():
            listener.on_phase(f"warning: {name} was {then} when the study was made, now it is {now}")
        setup = replace(inputs.setup(opened.identity), need=asdict(memory_of(inputs)))
        with _starting(opened, listener):
            opening = open_executor(
                setup,
                spec.workers,
                ray,
                worker_output=listener.worker_output,
                secrets=secrets_of(spec.storage_url),
                say=listener.on_phase,
                check=stop.look,
                on_hang=_end_by(stop, opened.search),
            )
        with first_reason(closing(opening), "while the workers were stopped") as executor:
            stop.listen()
            yield _begin(opened, executor, stop, steering, observer=observer, listener=listener)


def _noting(listener: Listener) -> Listener:
    """The listener, whose phases are events in the log of the study too."""

    def on_phase(text: str) -> None:
        note_event(text)
        listener.on_phase(text)

    return replace(listener, on_phase=on_phase)


def _end_by(stop: Stop, search: SearchStudy) -> Callable[[Outcome], None]:
    """Ends the process, if it is a command's, where a job hangs that cannot be interrupted.

    Where it is a trial's that is stored with it, and the same command goes on with the next one.
    """

    def end(outcome: Outcome) -> None:
        study, _, number = outcome.key.rpartition("/")
        if not stop.can_end_process:
            return
        reason = f"{outcome.key}: {reason_of(outcome)}"
        if study != search.study.study_name or not number.isdecimal():
            stop.end_process(StoppedByFailures.exit_code, reason)
        with suppress(Exception):  # the process ends all the same; the next run tries the trial again
            search.fail(int(number), reason_of(outcome), outcome)
        stop.end_process(Interrupted.exit_code, f"{reason}; {GO_ON}")

    return end


def _say(opened: OpenSearch, listener: Listener, phase: str) -> None:
    listener.on_phase(phase)
    opened.search.set(attributes.PHASE, phase)


@contextmanager
def _starting(opened: OpenSearch, listener: Listener) -> Iterator[None]:
    """A phase after which the study is as it was, and its phase the former one, where no worker can be started."""
    former = opened.search.study.user_attrs.get(attributes.PHASE)
    _say(opened, listener, "starting workers")
    try:
        yield
    except BaseException as reason:
        with noted(reason, "while the phase of the study was set back"):
            opened.search.set(attributes.PHASE, former)
        raise


def _beat_with(stop: Stop, heartbeat: Heartbeat) -> None:
    """Give signs of life wherever the run looks whether it should stop, which it does in every wait."""
    look = stop.on_look

    def look_and_beat() -> None:
        look()
        heartbeat.beat()

    stop.on_look = look_and_beat


def _refuse_unfit(inputs: Inputs, baselines: Sequence[BaselineSpec]) -> list[str]:
    """Refuse, before anything is created, inputs that would end the run later; warnings about those that may not."""
    check_trackers(inputs.spec.track)
    task_weights(inputs.spec.objective, inputs.evaluator.weights)
    check_warm_start(inputs)
    if not has_begun(inputs.spec):
        check_recipe_file(inputs)
    for baseline in baselines:
        check_baseline(baseline, inputs.spec, inputs.evaluator.weights)
        planned_training(baseline, inputs)
    for measurement in all_measurements(inputs, baselines):
        measurement.texts(inputs.evaluator)
    return [*(inputs.own_merge.notes if inputs.own_merge is not None else ()), *check_requests(inputs)]


def _begin(
    opened: OpenSearch,
    executor: Executor,
    stop: Stop,
    steering: Steering,
    *,
    observer: RunObserver,
    listener: Listener,
) -> Session:
    inputs = opened.inputs
    spec = inputs.spec
    sources = source_rows(inputs.base.ref, [expert.ref for expert in inputs.experts], inputs.catalogue, spec.dtype)
    batch_size = opened.identity.batch_size
    if batch_size is None:
        batch_size = _find_batch_size(opened, executor, stop, sources[0].recipe)
    _say(opened, listener, "scoring the sources on the search items")
    block = ItemBlock("search")
    results = score_rows(sources, block, records=opened.baselines, executor=executor, stop=stop, batch_size=batch_size)
    scores = [results[source.name].scores for source in spec.sources]
    objective = build_objective(spec.objective, inputs.evaluator.weights, scores)
    for name, result in results.items():
        assessed = objective.assess(result.scores)
        if isinstance(assessed, Collapsed) and result.outcome is not None:  # it overflows only together
            raise unfit_source(name, assessed, block)
    if any(result.outcome is not None for result in results.values()):  # said once, when they are new
        for warning in unlearned_skills(spec.sources, {name: result.scores for name, result in results.items()}):
            _log.warning("%s", warning)
    for result in results.values():
        record_row(result, opened.baselines, objective)
    return Session(
        opened=opened,
        executor=executor,
        stop=stop,
        steering=steering,
        observer=observer,
        listener=listener,
        batch_size=batch_size,
        objective=objective,
        plots=DashboardPlots(_stored(opened), opened.artifact_folder, check_hold=opened.check_hold),
        sources=sources,
        references=results,
    )


def _stored(opened: OpenSearch) -> StoredSearch:
    return StoredSearch(
        spec=opened.inputs.spec,
        storage=opened.storage,
        study=opened.search.study,
        baselines=opened.baselines.study,
        held_out=opened.held_out.study,
        artifacts=opened.artifacts,
    )


def _find_batch_size(opened: OpenSearch, executor: Executor, stop: Stop, recipe: Recipe) -> int | None:
    """Let a worker find the batch size of the study, and store it there."""
    found, search = find_batch_size(executor, stop, recipe), opened.search
    search.set(attributes.ONE_BY_ONE, found.harness_scores.one_by_one)
    search.set(attributes.NO_HARNESS_SCORES, found.harness_scores.never)
    search.set(attributes.BATCH_SIZE, found.batch_size)
    return found.batch_size
