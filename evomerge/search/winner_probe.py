"""The sanity probe of a search: sources and the best trial, before that trial is named the winner.

The winner stays the best trial on the search items, whatever the probe finds: what the user asked for is the objective,
other trials are shown and never promoted, and a threshold of the probe is no part of what a study was made with. A
winner with faults is named together with them, and with the best of the other shown trials that has none.
"""

from __future__ import annotations

from dataclasses import replace

from evomerge.errors import InvalidInput
from evomerge.jobs import Failed, Probe, Probed
from evomerge.loop.dispatcher import reason_of, run_all
from evomerge.recipe import Recipe
from evomerge.sanity.probe_records import SanityRecords, read_sanity
from evomerge.sanity.sanity_figures import SanityFigures
from evomerge.search.session import Session
from evomerge.storage import attributes
from evomerge.study.trials import best_trials

NO_MODEL = "the evaluator of this search runs no model"
REASON = 300  # characters of a failure that are kept


def probe_winner(session: Session) -> None:
    """Probe the sources and the best trial, and other shown trials while the ones before have faults; each once.

    Nothing is scored, and no item is read.
    """
    search = session.opened.search
    if search.tally.best is None:
        return
    before = read_sanity(search.study)
    records = _with_sources(session, before) if _runs_models(session) else SanityRecords(reason=NO_MODEL)
    if not records.reason:
        records = _with_trials(session, records)
    if records != before:
        search.set_text(attributes.SANITY, records.to_json())


def _runs_models(session: Session) -> bool:
    """Whether the evaluator has asked for the weights of a source."""
    return any(result.seconds.get("merge", 0.0) > 0 for result in session.references.values())


def _with_sources(session: Session, records: SanityRecords) -> SanityRecords:
    rows = {source.recipe.digest: source for source in session.sources}
    records = replace(records, sources=tuple(rows), reason="")
    wanted = {row.recipe.digest: (row.label, row.recipe) for row in rows.values()}
    records = _probed(session, records, wanted)
    found = records.of_sources
    if not any(isinstance(each, SanityFigures) for each in found.values()):
        reasons = [each for each in found.values() if isinstance(each, str)]
        return SanityRecords(reason=reasons[0] if reasons else "the machine failed under the probe of the sources")
    return records


def _with_trials(session: Session, records: SanityRecords) -> SanityRecords:
    """The records with the winner, and with further trials until one of them has no fault."""
    search = session.opened.search
    best = search.tally.best
    assert best is not None, "checked by the caller"
    winner = search.trials()[best[1]]
    shown = best_trials(search.study, session.opened.inputs.spec.verdict.best)
    records = replace(records, ranked=())
    for trial in (winner, *(each for each in shown if each.number != winner.number)):
        digest = str(trial.user_attrs[attributes.RECIPE])
        if digest not in records.models:
            try:
                recipe = search.recipe_of(trial)
            except InvalidInput:  # of another version; the winner's is checked where it is named
                continue
            records = _probed(session, records, {digest: (f"trial {trial.number}", recipe)})
        records = replace(records, ranked=(*records.ranked, digest))
        judgement = records.judged(digest)
        if judgement is not None and not judgement.faults:
            break
    return records


def _probed(session: Session, records: SanityRecords, wanted: dict[str, tuple[str, Recipe]]) -> SanityRecords:
    """The records with these models; without those under which the machine failed: the next run tries them again."""
    missing = {digest: each for digest, each in wanted.items() if digest not in records.models}
    if not missing:
        return records
    session.say(f"probing the sanity of {', '.join(label for label, _ in missing.values())}")
    study = session.opened.search.study.study_name
    jobs = {f"{study}/probe/{label}": digest for digest, (label, _) in missing.items()}
    probes = [Probe(f"{study}/probe/{label}", recipe) for label, recipe in missing.values()]
    for job, outcome in run_all(session.executor, session.stop, probes):
        digest, result = jobs[job.key], outcome.result
        if isinstance(result, Probed):
            records = records.with_model(digest, missing[digest][0], result.figures)
        elif isinstance(result, Failed) and not result.by_machine:
            records = records.with_model(digest, missing[digest][0], reason_of(outcome)[:REASON])
    return records
