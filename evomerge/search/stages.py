"""The stages of a run: baselines, the search itself, and the comparison of its winner on the held-out items."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from evomerge.baselines.baseline_plans import Ingredients
from evomerge.baselines.freshness import current_baselines
from evomerge.baselines.info import BASELINES
from evomerge.baselines.models_by_task import joined_row, named_recipes
from evomerge.baselines.named_recipes import NamedRecipe, NamedResult, record_row, score_rows
from evomerge.baselines.planned_training import facts_of
from evomerge.baselines.random_search import random_search
from evomerge.baselines.runner import BaselineRunner
from evomerge.baselines.search_cost import built_before, cost_before, search_cost
from evomerge.errors import InvalidInput, StoppedByFailures
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost, Measured
from evomerge.loop.controller import Controller
from evomerge.loop.dispatcher import reason_of, refuse_invalid, run_all
from evomerge.loop.outlook import Bar
from evomerge.messages import duration, duration_of_one, listed, some
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.opening.measurements import planned_measurements
from evomerge.packs.items import ItemBlock
from evomerge.racing import ItemHistory, build_fidelity
from evomerge.recipe import RecipeSet
from evomerge.samplers.base import sampler_of
from evomerge.samplers.reference_points import ReferencePoint
from evomerge.sanity.probe_records import read_sanity
from evomerge.search.finding import finding
from evomerge.search.ingredients import stored_scores, take_ingredients
from evomerge.search.origins import origin_of
from evomerge.search.session import Session
from evomerge.search.warm_start import beginning_of, reference_points, warm_points
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.study.ended_scores import ended_scores
from evomerge.study.incumbent import read_incumbent
from evomerge.study.ledger import ledger_of
from evomerge.study.row_failures import read_left_out
from evomerge.study.rows import Record
from evomerge.study.snapshot import snapshot_of
from evomerge.study.status import FINISHED_PHASE, SEARCHING_PHASE
from evomerge.study.study_statistics import StudyStatistics, read_statistics
from evomerge.study.trials import best_trials
from evomerge.verdict import (
    Entrant,
    Winner,
    judge,
    note_look,
    read_digests,
    read_winner,
    store_digests,
    winning_recipe,
)
from evomerge.verdict.origin import with_origin
from evomerge.verdict.records import note_later_rows, read_known, store_verdict

MEAN = "mean of cma"


def early_and_late(spec: SearchSpec) -> tuple[list[BaselineSpec], list[BaselineSpec]]:
    """The baselines of a spec that are built before the first trial, and those that are built after the search."""
    first = built_before(spec) | {name for name, info in BASELINES.items() if info.early and not info.control}
    early = [each for each in spec.chosen_baselines if each.name in first]
    return early, [each for each in spec.chosen_baselines if each.name not in first]


def make_baselines(session: Session, baselines: Sequence[BaselineSpec], *, again: bool = False) -> dict[str, str]:
    """Build the baselines that the study does not have yet.

    Args:
        again: try also those that could not be built before.

    Returns:
        Baseline -> reason why it cannot be built.
    """
    runner = BaselineRunner(
        _ingredients(session),
        session.opened.baselines,
        session.executor,
        stop=session.stop,
        batch_size=session.batch_size,
        artifacts=session.opened.artifact_folder,
        on_progress=session.listener.on_progress,
    )
    searches = [each for each in baselines if BASELINES[each.name].sampler is not None]
    left_out = runner.make([each for each in baselines if each not in searches], again=again)
    for baseline in searches:
        session.say(f"{SEARCHING_PHASE} at random")
        try:
            random_search(
                baseline,
                session.opened,
                session.executor,
                session.objective,
                stop=session.stop,
                steering=session.steering,
                batch_size=session.batch_size,
                on_status=session.listener.on_status,
            )
        except StoppedByFailures as error:  # the search itself has ended well
            left_out[baseline.name] = str(error)
            session.listener.on_phase(f"warning: {baseline.name} is left out: {error}")
    return left_out


def _ingredients(session: Session) -> Ingredients:
    inputs, search = session.opened.inputs, session.opened.search
    winner = read_winner(search.study.user_attrs)
    return Ingredients(
        spec=inputs.spec,
        base=inputs.base.ref,
        experts=inputs.refs[1:],
        catalogue=inputs.catalogue,
        objective=session.objective,
        references={name: result.scores for name, result in session.references.items()},
        reference_cost=sum((session.references[ref.name].cost for ref in inputs.refs[1:]), Cost()),
        best=winning_recipe(search, winner) if winner is not None else None,
        search_cost=search_cost(inputs.spec, ledger_of(search.study), session.opened.baselines),
        trials=search.tally.finished,
        own_merge=inputs.own_merge.recipe if inputs.own_merge is not None else None,
        facts=facts_of(inputs),
    )


def measure_statistics(session: Session) -> Session:
    """Measure what the methods of the space take, where the study does not have it, and have every recipe name it.

    Returns:
        The session with the files of the study.

    Raises:
        InvalidInput: texts cannot be measured, or a file that was lost cannot be made again with the same numbers.
        StoppedByFailures: a source cannot be measured for another reason.
        Interrupted: a signal asked for a stop; the next run continues.
    """
    opened = session.opened
    known, folder = read_statistics(opened.search.study), opened.artifact_folder
    missing = [
        each for each in planned_measurements(opened.inputs) if not _is_stored(folder, known.files.get(each.role))
    ]
    if not missing:
        return session
    session.say(f"measuring {' and '.join(dict.fromkeys(each.kind for each in missing))} of the sources")
    jobs = {each.role: each.job(opened.search.study.study_name) for each in missing}
    roles = {job.key: role for role, job in jobs.items()}
    files, cost = dict(known.files), known.cost
    for job, outcome in run_all(session.executor, session.stop, jobs.values(), session.listener.on_progress):
        role = roles[job.key]
        if not isinstance(outcome.result, Measured):
            refuse_invalid(outcome)
            raise StoppedByFailures(f"{role} cannot be measured: {reason_of(outcome)}")
        if known.files.get(role) not in (None, outcome.result.digest):
            raise InvalidInput(
                f"{known.files[role]}.safetensors, the file of {role} that the trials of the study were merged with, "
                f"is lost, and the numbers that are measured now differ; restore it in {folder}/files, or give the "
                "search a new name"
            )
        cost += outcome.cost if role not in known.files else Cost()
        files[role] = outcome.result.digest
    return replace(session, opened=opened.with_statistics(StudyStatistics(files=files, cost=cost)))


def _is_stored(folder: ArtifactFolder, digest: str | None) -> bool:
    return digest is not None and folder.has_files([digest])


def take_merges(session: Session) -> Session:
    """Give the space the merges that it is made of, where it is made of merges. See `take_ingredients`.

    Returns:
        The session with the space that can be decoded.
    """
    return replace(session, opened=take_ingredients(session.opened, session.listener.on_phase))


def enqueue_known_merges(session: Session) -> None:
    """Have the first points of the space and the warm start scored first, and store reference points; once a study."""
    opened = session.opened

    def points_to_improve() -> list[ReferencePoint]:
        return reference_points(opened, session.objective) if opened.inputs.spec.needs_reference_points else []

    opened.search.start(lambda: warm_points(opened), points_to_improve, lambda: beginning_of(opened))
    if opened.inputs.spec.warm_start.begin is not None:
        opened.renew_sampler()


def explore(session: Session) -> None:
    """Spend the budget of the search, and report the duration of a candidate before and after it."""
    session.say(SEARCHING_PHASE)
    opened = session.opened
    spec, study = opened.inputs.spec, opened.search.study
    predicted = _predict_duration(session)
    references = [session.references[source.name].scores for source in spec.sources]
    race = opened.identity.race
    stored = (study, opened.storage, opened.artifacts, opened.patience)
    fidelity = build_fidelity(spec.fidelity, session.objective, references, race=race, seed=spec.seed)
    Controller(
        opened.search,
        session.executor,
        session.objective,
        session.stop,
        budget=spec.budget,
        before=cost_before(spec, ledger_of(study), opened.baselines),
        fidelity=fidelity,
        incumbent=read_incumbent(*stored) if fidelity.needs_incumbent else None,
        history=ItemHistory(ended_scores(*stored) if fidelity.needs_history else ()),
        stored=stored_scores(opened),
        bar=_bar(session),
        steering=session.steering,
        batch_size=session.batch_size,
        on_status=session.on_search_status,
    ).run()
    spent = opened.search.tally.spent
    if spent.candidates:  # trials with the scores of a baseline cost nothing
        measured = spent.seconds / spent.candidates
        session.listener.on_phase(
            f"a candidate took {duration_of_one(measured)} (predicted: {duration_of_one(predicted)})"
        )


def _bar(session: Session) -> Bar | None:
    """The best of the sources and of the early baselines that are one model: all that is known while a search runs.

    None where none of them has a finite value.
    """
    opened = session.opened
    early, _ = early_and_late(opened.inputs.spec)
    names = {baseline.name for baseline in early}
    known = current_baselines(opened.baselines, opened.inputs.spec, snapshot_of(opened.search.study))
    bars = [
        *(Bar(name, session.objective.value_or_nan(each.scores)) for name, each in session.references.items()),
        *(Bar(each.label, each.value) for each in known if each.label in names and each.model_count == 1),
    ]
    return max((bar for bar in bars if math.isfinite(bar.value)), key=lambda bar: bar.value, default=None)


def _predict_duration(session: Session) -> float:
    """Report the duration of the search, as the experts' scoring predicts it. Returns seconds per candidate."""
    inputs = session.opened.inputs
    seconds = statistics.fmean(session.references[expert.ref.name].cost.seconds for expert in inputs.experts)
    left = max(0, inputs.spec.budget.trials - session.opened.search.tally.finished)
    workers = max(1, session.executor.capacity)
    session.listener.on_phase(
        f"a candidate takes about {duration_of_one(seconds)} on all items: {left} trials on {workers} "
        f"{'worker' if workers == 1 else 'workers'} about {duration(left * seconds / workers)}"
    )
    return seconds


def judge_winner(session: Session, winner: Winner, *, retried: Collection[str] = ()) -> None:
    """Score the winner and all that it is compared with on the held-out items, and store the verdict.

    Args:
        retried: labels of rows that are tried again where they could not be scored.
    """
    session.say("scoring the winner and what it is compared with on the held-out items")
    opened, search = session.opened, session.opened.search
    params = search.trials()[winner.trial].params
    best = NamedRecipe(
        label=winner.label,
        recipe=winning_recipe(search, winner),
        params=params,
        required=True,
        digests=True,
        keep_recipe=True,
    )
    baselines = current_baselines(opened.baselines, opened.inputs.spec, snapshot_of(search.study))
    recipes = {record.label: record.stored_recipe for record in baselines}
    rows = [
        best,
        *_shown(session, winner),
        *session.sources,
        *(
            replace(row, params=record.params)
            for record in baselines
            for row in named_recipes(record.label, recipes[record.label])
        ),
    ]
    note_look(search, winner, [row.recipe for row in rows], opened.inputs.spec.verdict.margin)

    def store(result: NamedResult) -> None:
        if result.digests is not None:
            store_digests(search, winner, result.digests)
        record_row(result, opened.held_out, session.objective)

    results = score_rows(
        rows,
        ItemBlock("held_out"),
        records=opened.held_out,
        executor=session.executor,
        stop=session.stop,
        batch_size=session.batch_size,
        objective=session.objective,
        on_scored=store,
        # A row that was shown before it won has no digests, against which its export is verified.
        again=[best.label] if read_digests(search.study, winner.trial) is None else [],
        retried=retried,
    )
    held_out = {label: result.scores for label, result in results.items()}
    for label, recipe in recipes.items():
        if isinstance(recipe, RecipeSet) and (joined := _joined(session, label, recipe, results)) is not None:
            held_out[label] = joined
    _store_verdict(session, winner, baselines, held_out)
    session.plots.write(best.recipe)
    session.observer.conclude(lambda: finding(session.stored))
    session.say(FINISHED_PHASE)


def _joined(session: Session, label: str, recipe: RecipeSet, results: Mapping[str, NamedResult]) -> Scores | None:
    """The held-out scores of a row that is several models, stored; None where one of them could not be scored."""
    found = {row.label: results.get(row.label) for row in named_recipes(label, recipe)}
    scored = [each for each in found.values() if each is not None]
    held_out = session.opened.held_out
    if len(scored) < len(found):
        missing = [name for name, each in found.items() if each is None]
        if (label, recipe.digest) not in read_left_out(held_out.study):
            held_out.leave_out(label, recipe.digest, f"{listed(missing)} cannot be scored")
        return None
    row = joined_row(label, recipe, scored, session.objective)
    stored = held_out.find(label, recipe)
    if stored is None or held_out.scores(stored) is None:
        held_out.add(row)
    return row.scores


def _shown(session: Session, winner: Winner) -> list[NamedRecipe]:
    """The other best trials and the sampler's mean: shown beside the winner, never promoted to it."""
    opened, search = session.opened, session.opened.search
    trials = best_trials(search.study, opened.inputs.spec.verdict.best)
    others = [
        NamedRecipe(label=f"trial {trial.number}", recipe=search.recipe_of(trial), params=trial.params)
        for trial in trials
        if trial.number != winner.trial
    ]
    mean = sampler_of(search.study).mean(search.study)
    if mean is None:
        return others
    if lost := [name for name, value in mean.items() if isinstance(value, float) and not math.isfinite(value)]:
        if (MEAN, "") not in read_left_out(opened.held_out.study):
            opened.held_out.leave_out(MEAN, "", f"its {some(lost)} is not finite")
        return others
    recipe = opened.space.decode(mean)
    return [*others, NamedRecipe(label=MEAN, recipe=recipe, params=mean, keep_recipe=True)]


def _store_verdict(
    session: Session, winner: Winner, baselines: Sequence[Record], held_out: Mapping[str, Scores]
) -> None:
    opened, objective = session.opened, session.objective
    study = opened.search.study
    digests = {source.label: source.recipe.digest for source in session.sources}
    sources = [
        Entrant(label=name, held_out=held_out[name], search=objective.value(result.scores), recipe=digests[name])
        for name, result in session.references.items()
    ]
    best_source = max(sources, key=lambda source: -math.inf if source.search is None else source.search)
    others = [
        Entrant(
            label=each.label,
            held_out=held_out[each.label],
            search=each.value,
            chosen=BASELINES[each.label].chosen_on_search_items,
            models=each.model_count,
            recipe=each.digest,
            control=BASELINES[each.label].control,
        )
        for each in baselines
        if each.label in held_out and each.digest != winner.digest  # the winner may be a baseline itself
    ]
    compared = [best_source, *others]
    search_items = opened.inputs.evaluator.split.items(ItemBlock("search"))
    margin = opened.inputs.spec.verdict.margin
    known = read_known(study, winner, {each.label: each.recipe for each in compared if each.recipe is not None})
    verdict = judge(
        objective,
        Entrant(label=winner.label, held_out=held_out[winner.label], search=winner.value),
        winner.trial,
        compared,
        sources,
        trials=opened.search.tally.finished - opened.search.tally.failed,
        search_items=sum(map(len, search_items.values())),
        looks=note_later_rows(opened.search, known, [each.label for each in compared], margin),
        known=known,
        margin=margin,
        seed=opened.inputs.spec.seed,
    )
    opened.check_hold()
    verdict = with_origin(verdict, origin_of(opened.inputs.spec, study, winner.trial))
    store_verdict(study, verdict.with_warning(read_sanity(study).warning(winner.digest, winner.label)))
