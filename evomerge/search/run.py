"""One search from spec to verdict, in one page: references, the loop, the winner, the baselines, the verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from evomerge.baselines import (
    BaselineMaker,
    Ingredients,
    Row,
    RowResult,
    check_baseline,
    current_baselines,
    record_row,
    score_rows,
    settings_of,
    source_rows,
)
from evomerge.baselines.planned_training import longest_text, planned_training
from evomerge.baselines.random_search import NAME as RANDOM_SEARCH
from evomerge.baselines.random_search import random_search
from evomerge.cluster import Executor, ignored_without_ray, is_local, open_executor, worker_count
from evomerge.errors import InvalidInput, StoppedByFailures, unknown_name
from evomerge.evaluation.evaluator import ItemBlock, Scores
from evomerge.jobs import Cost, Progress
from evomerge.loop.controller import Controller
from evomerge.loop.dispatcher import find_batch_size
from evomerge.loop.stop import Stop, stopping_on_signals
from evomerge.objective import Objective, build_objective, task_weights
from evomerge.opening.capacity import placement_of
from evomerge.opening.inputs import open_inputs
from evomerge.opening.open_study import OpenSearch, open_search
from evomerge.opening.readiness import check_requests
from evomerge.racing import build_fidelity
from evomerge.samplers.base import sampler_of
from evomerge.samplers.reference_points import ReferencePoint
from evomerge.search.warm_start import reference_points, warm_points
from evomerge.spec import BASELINES, ON_REQUEST, BaselineSpec, SearchSpec
from evomerge.storage import attributes
from evomerge.storage.url import run_directory
from evomerge.study.command_line import command_line
from evomerge.study.foundation import changed_versions
from evomerge.study.incumbent import read_incumbent
from evomerge.study.records import Record
from evomerge.study.standing import standing_of
from evomerge.study.status import Status
from evomerge.study.trials import best_trials
from evomerge.verdict import (
    Entrant,
    Winner,
    judge,
    name_winner,
    note_look,
    read_digests,
    read_winner,
    store_digests,
    winning_recipe,
)
from evomerge.verdict.records import store_verdict
from evomerge.worker import files_folder

EARLY = ("uniform-soup",)  # normalisation, constraints and warm starts need these before the first trial
# Chosen by their own value on the search items, whose luck they share.
CHOSEN = ("greedy-soup", "task-arithmetic", "dam-from-best", "random-search")
MEAN = "mean of cma"


@dataclass(frozen=True)
class Listener:
    """Callbacks of a run; each defaults to silence.

    Attributes:
        on_open: is given the folder of the run, as soon as the study is held and may be written to.
        worker_output: let Ray print here what its workers print; it is in Ray's own logs in any case.
    """

    on_phase: Callable[[str], None] = lambda text: None
    on_status: Callable[[Status], None] = lambda status: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_open: Callable[[Path], None] = lambda folder: None
    worker_output: bool = False


def run_search(spec: SearchSpec, *, ray: str | None = None, listener: Listener | None = None) -> optuna.Study:
    """Create the spec's study or go on with it until its budget is spent; then compare the winner on held-out items.

    Args:
        ray: where workers run, see `evomerge.cluster.open_executor`.
        listener: is told about phases and progress.

    Returns:
        The study: trials in it, sources and baselines in `NAME/baselines`, the comparison in `NAME/held-out`.

    Raises:
        EvomergeError: see `evomerge.errors`; everything that finished is stored, and the same call goes on.
    """
    with stopping_on_signals() as stop, _session(spec, ray, listener or Listener(), stop) as session:
        chosen = spec.chosen_baselines
        first = spec.warm_start.baselines > 0 or spec.needs_reference_points
        early = chosen if first else [each for each in chosen if each.name in EARLY]
        session.make([baseline for baseline in early if baseline.name not in ON_REQUEST])
        session.opened.search.start(lambda: warm_points(session.opened), session.reference_points)
        session.say("searching")
        predicted = session.predict()
        session.search()
        session.compare_with(predicted)
        winner = name_winner(session.opened.search)
        session.say("making the baselines")
        session.make([baseline for baseline in chosen if baseline not in early or baseline.name in ON_REQUEST])
        session.judge(winner)
        return session.opened.search.study


def run_baselines(
    spec: SearchSpec, names: Sequence[str], *, ray: str | None = None, listener: Listener | None = None
) -> optuna.Study:
    """Make baselines beside a search. Where the search has ended, the verdict takes them in.

    Args:
        names: of baselines; their settings are the spec's.

    Returns:
        The study of the search.

    Raises:
        EvomergeError: see `evomerge.errors`; StoppedByFailures if one of them cannot be made.
    """
    for name in names:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    wanted = [settings_of(name, spec) for name in dict.fromkeys(names)]
    with stopping_on_signals() as stop, _session(spec, ray, listener or Listener(), stop, wanted) as session:
        study = session.opened.search.study
        winner = read_winner(study.user_attrs)
        if winner is None and (early := [name for name in names if name in ON_REQUEST]):
            raise InvalidInput(f"baseline {early[0]!r} follows from a search that has ended; run the search first")
        session.say("making the baselines")
        left_out = session.make(wanted, again=True)
        if winner is not None and winner.finished == session.opened.search.tally.finished:
            session.judge(winner)
        else:  # held-out items are looked at when the search has ended, and not before
            rest = command_line(spec, "run")
            session.listener.on_phase(f"the verdict will take them in when `{rest}` has ended the search")
        for name, reason in left_out.items():
            raise StoppedByFailures(f"baseline {name!r} cannot be made: {reason}")
        return study


@contextmanager
def _session(
    spec: SearchSpec, ray: str | None, listener: Listener, stop: Stop, further: Sequence[BaselineSpec] = ()
) -> Iterator[_Session]:
    """A study that is written to, with workers, a batch size, and the sources' scores.

    Args:
        further: baselines that will be made beside those of the spec.
    """
    inputs = open_inputs(spec)
    for warning in inputs.warnings:
        listener.on_phase(f"warning: {warning}")
    # Refused before anything is created.
    task_weights(spec.objective, inputs.evaluator.weights)
    for baseline in (*spec.chosen_baselines, *further):
        check_baseline(baseline, spec)
        planned_training(baseline, inputs)
    check_requests(inputs)
    if not_applicable := ignored_without_ray(spec.workers, ray):
        listener.on_phase(
            f"warning: without Ray there is one worker, this process; ignored: {', '.join(not_applicable)}"
        )
    workers = worker_count(spec.workers, ray)
    placement_of(inputs, workers if is_local(ray) else 1)  # refuses what cannot fit
    with open_search(inputs, workers=workers) as opened:
        listener.on_open(run_directory(spec.storage_url, spec.name))
        for name, (then, now) in changed_versions(opened.search.study).items():
            listener.on_phase(f"warning: {name} was {then} when the study was made, now it is {now}")
        setup = inputs.setup(opened.foundation)
        listener.on_phase("starting workers")
        with closing(open_executor(setup, spec.workers, ray, worker_output=listener.worker_output)) as executor:
            stop.listen()
            yield _open_session(opened, executor, stop, listener)


def _open_session(opened: OpenSearch, executor: Executor, stop: Stop, listener: Listener) -> _Session:
    inputs, search = opened.inputs, opened.search
    spec = inputs.spec
    sources = source_rows(inputs.base.ref, [expert.ref for expert in inputs.experts], inputs.catalogue, spec.dtype)
    batch_size = opened.foundation.batch_size
    if batch_size is None:
        found = find_batch_size(executor, stop, sources[0].recipe)
        batch_size = found.batch_size
        search.set(attributes.ONE_BY_ONE, found.harness_scores.one_by_one)
        search.set(attributes.NO_HARNESS_SCORES, found.harness_scores.never)
        search.set(attributes.BATCH_SIZE, batch_size)
    listener.on_phase("scoring the sources on the search items")
    results = score_rows(sources, ItemBlock("search"), opened.baselines, executor, stop, batch_size)
    scores = [results[source.name].scores for source in spec.sources]
    objective = build_objective(spec.objective, inputs.evaluator.weights, scores)
    for result in results.values():
        record_row(result, opened.baselines, objective)
    return _Session(opened, executor, stop, listener, batch_size, objective, sources, results)


@dataclass(frozen=True)
class _Session:
    """What a run works with, once the sources have been scored.

    Attributes:
        sources: base and experts as rows.
        references: source name -> its result on the search items.
    """

    opened: OpenSearch
    executor: Executor
    stop: Stop
    listener: Listener
    batch_size: int | None
    objective: Objective
    sources: Sequence[Row]
    references: dict[str, RowResult] = field(default_factory=dict)

    def say(self, phase: str) -> None:
        """Tell what is being done, also to `evomerge status`."""
        self.listener.on_phase(phase)
        self.opened.search.set(attributes.PHASE, phase)

    def make(self, baselines: Sequence[BaselineSpec], *, again: bool = False) -> dict[str, str]:
        """Make the baselines that the study does not have yet.

        Returns:
            Baseline -> why it cannot be made.
        """
        inputs, search = self.opened.inputs, self.opened.search
        experts = tuple(expert.ref for expert in inputs.experts)
        winner = read_winner(search.study.user_attrs)
        ingredients = Ingredients(
            inputs.spec,
            inputs.base.ref,
            experts,
            inputs.catalogue,
            self.objective,
            {name: result.scores for name, result in self.references.items()},
            sum((self.references[ref.name].cost for ref in experts), Cost()),
            winning_recipe(search, winner) if winner is not None else None,
            search.tally.finished,
            longest_text(inputs),
        )
        maker = BaselineMaker(
            ingredients,
            self.opened.baselines,
            self.executor,
            self.stop,
            self.batch_size,
            files_folder(self.opened.artifacts),
            self.listener.on_progress,
        )
        left_out = maker.make([baseline for baseline in baselines if baseline.name != RANDOM_SEARCH], again=again)
        if any(baseline.name == RANDOM_SEARCH for baseline in baselines):
            self.say("searching at random")
            try:
                random_search(
                    self.opened, self.executor, self.objective, self.stop, self.batch_size, self.listener.on_status
                )
            except StoppedByFailures as error:  # the search itself has ended well
                left_out[RANDOM_SEARCH] = str(error)
                self.listener.on_phase(f"warning: {RANDOM_SEARCH} is left out: {error}")
        return left_out

    def reference_points(self) -> list[ReferencePoint]:
        """The baselines that were built, for a sampler that searches for what is better than they are."""
        spec = self.opened.inputs.spec
        return reference_points(self.opened, self.objective) if spec.needs_reference_points else []

    def predict(self) -> float:
        """Say how long the search will take, from what scoring the experts took. Returns seconds per candidate."""
        seconds = statistics.fmean(self.references[ref.ref.name].cost.seconds for ref in self.opened.inputs.experts)
        left = max(0, self.opened.inputs.spec.budget.trials - self.opened.search.tally.finished)
        workers = self.executor.capacity
        self.listener.on_phase(
            f"a candidate takes about {seconds:.2g} s on all items: {left} trials on {workers} "
            f"{'worker' if workers == 1 else 'workers'} about {left * seconds / workers / 60:.1f} min"
        )
        return seconds

    def compare_with(self, predicted: float) -> None:
        """Say what candidates took, beside what was predicted."""
        search = self.opened.search
        if search.tally.finished:
            measured = search.tally.spent.seconds / search.tally.finished
            self.listener.on_phase(f"a candidate took {measured:.2g} s (predicted: {predicted:.2g} s)")

    def search(self) -> None:
        """Spend the budget."""
        opened = self.opened
        spec, study = opened.inputs.spec, opened.search.study
        Controller(
            opened.search,
            self.executor,
            self.objective,
            self.stop,
            budget=spec.budget,
            fidelity=build_fidelity(
                spec.fidelity, self.objective, [self.references[source.name].scores for source in spec.sources]
            ),
            incumbent=read_incumbent(study, opened.storage, opened.artifacts) if spec.fidelity.name != "full" else None,
            batch_size=self.batch_size,
            on_status=self.listener.on_status,
        ).run()

    def judge(self, winner: Winner) -> None:
        """Score the winner and all that it is compared with on the held-out items, and store the verdict."""
        self.say("scoring the winner and what it is compared with on the held-out items")
        search = self.opened.search
        params = search.trials()[winner.trial].params
        best = Row(winner.label, winning_recipe(search, winner), params, required=True, digests=True)
        baselines = current_baselines(self.opened.baselines, self.opened.inputs.spec, standing_of(search.study))
        rows = [
            best,
            *self._shown(winner),
            *self.sources,
            *(Row(record.label, record.recipe, record.params) for record in baselines),
        ]
        note_look(search, winner, [row.recipe for row in rows])

        def keep(result: RowResult) -> None:
            if result.digests is not None:
                store_digests(search, winner, result.digests)
            record_row(result, self.opened.held_out, self.objective)

        # A row that was shown before it won has no digests, against which its export is verified.
        again = [best.label] if read_digests(search.study, winner.trial) is None else []
        results = score_rows(
            rows, ItemBlock("held_out"), self.opened.held_out, self.executor, self.stop, self.batch_size, keep, again
        )
        held_out = {label: result.scores for label, result in results.items()}
        self._store_verdict(winner, baselines, held_out)
        self.say("finished")

    def _shown(self, winner: Winner) -> list[Row]:
        """The other best trials and the sampler's mean: shown beside the winner, never promoted to it."""
        opened, search = self.opened, self.opened.search
        trials = best_trials(search.study, opened.inputs.spec.verdict.best)
        others = [
            Row(f"trial {trial.number}", search.recipe_of(trial), trial.params)
            for trial in trials
            if trial.number != winner.trial
        ]
        mean = sampler_of(search.study).mean(search.study)
        if mean is None:
            return others
        return [*others, Row(MEAN, opened.inputs.space.decode(mean), mean, keep_recipe=True)]

    def _store_verdict(self, winner: Winner, baselines: Sequence[Record], held_out: dict[str, Scores]) -> None:
        study = self.opened.search.study
        sources = [
            Entrant(label=name, held_out=held_out[name], search=self.objective.value(result.scores))
            for name, result in self.references.items()
        ]
        best_source = max(sources, key=lambda source: -math.inf if source.search is None else source.search)
        others = [
            Entrant(label=each.label, held_out=held_out[each.label], search=each.value, chosen=each.label in CHOSEN)
            for each in baselines
            if each.label in held_out
        ]
        search_items = self.opened.inputs.evaluator.split.items(ItemBlock("search"))
        verdict = judge(
            self.objective,
            Entrant(label=winner.label, held_out=held_out[winner.label], search=winner.value),
            winner.trial,
            [best_source, *others],
            sources,
            trials=self.opened.search.tally.finished - self.opened.search.tally.failed,
            search_items=sum(map(len, search_items.values())),
            looks=len(study.user_attrs[attributes.LOOKS]),
            seed=self.opened.inputs.spec.seed,
        )
        self.opened.check_hold()
        store_verdict(study, verdict)
