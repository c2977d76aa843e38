"""One search from spec to verdict, in one page; and baselines that are built beside a search that has ended.

The stages are in `stages.py`, and what they share in `session.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
from optuna.trial import FrozenTrial

from evomerge.baselines.freshness import settings_of
from evomerge.baselines.info import BASELINES
from evomerge.errors import InvalidInput, StoppedByFailures, unknown_name
from evomerge.loop.stop import stopping_on_signals
from evomerge.search.session import Listener, open_session
from evomerge.search.stages import (
    early_and_late,
    enqueue_known_merges,
    explore,
    judge_winner,
    make_baselines,
    measure_statistics,
    take_merges,
)
from evomerge.search.winner_probe import probe_winner
from evomerge.spec import SearchSpec
from evomerge.storage.optuna_internals import stoppable
from evomerge.study.command_line import command_line
from evomerge.verdict import name_winner, read_winner

__all__ = ["Callback", "Listener", "run_baselines", "run_search"]


Callback = Callable[[optuna.Study, FrozenTrial], None]


def run_search(
    spec: SearchSpec,
    *,
    ray: str | None = None,
    callbacks: Sequence[Callback] = (),
    listener: Listener | None = None,
) -> optuna.Study:
    """Create the spec's study or resume it until its budget is spent; then compare the winner on held-out items.

    Args:
        ray: where workers run, see `evomerge.cluster.open_executor`.
        callbacks: called as in `optuna.Study.optimize`, one after the other, with the study and a copy of each trial
            that this run has ended: complete, pruned or failed. `study.stop()` in one ends the search as a spent
            budget does. What one raises ends the run, which may be resumed.
        listener: receives phases and progress.

    Returns:
        The study: trials in it, sources and baselines in `NAME/baselines`, the comparison in `NAME/held-out`.

    Raises:
        EvomergeError: see `evomerge.errors`; everything that finished is stored, and the same call resumes.
    """
    listener = _calling(callbacks, listener or Listener())
    with stopping_on_signals() as stop, open_session(spec, stop, ray=ray, listener=listener) as session:
        session = measure_statistics(session)
        early, late = early_and_late(spec)
        make_baselines(session, early)
        session = take_merges(session)
        enqueue_known_merges(session)
        explore(session)
        probe_winner(session)
        winner = name_winner(session.opened.search)
        session.say("making the baselines")
        make_baselines(session, late)
        judge_winner(session, winner)
        return session.opened.search.study


def _calling(callbacks: Sequence[Callback], listener: Listener) -> Listener:
    """The listener, whose trials are passed on to the callbacks too."""

    def on_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        with stoppable(study):
            for callback in (listener.on_trial, *callbacks):
                callback(study, trial)

    return replace(listener, on_trial=on_trial)


def run_baselines(
    spec: SearchSpec, names: Sequence[str], *, ray: str | None = None, listener: Listener | None = None
) -> optuna.Study:
    """Build baselines beside a search. If the search has ended, the verdict takes them in.

    Args:
        names: of baselines; their settings are the spec's.

    Returns:
        The study of the search.

    Raises:
        EvomergeError: see `evomerge.errors`; StoppedByFailures if one of them cannot be built.
    """
    for name in names:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    wanted = [settings_of(name, spec) for name in dict.fromkeys(names)]
    listener = listener or Listener()
    with (
        stopping_on_signals() as stop,
        open_session(spec, stop, ray=ray, listener=listener, further=wanted) as session,
    ):
        study = session.opened.search.study
        winner = read_winner(study.user_attrs)
        if winner is None and (early := [name for name in names if BASELINES[name].needs_search]):
            raise InvalidInput(f"baseline {early[0]!r} follows from a search that has ended; run the search first")
        session.say("making the baselines")
        left_out = make_baselines(session, wanted, again=True)
        if winner is not None and winner.finished == session.opened.search.tally.finished:
            judge_winner(session, winner, retried=names)
        else:  # held-out items are looked at when the search has ended, and not before
            rest = command_line(spec, "run")
            listener.on_phase(f"the verdict will take them in when `{rest}` has ended the search")
        for name, reason in left_out.items():
            raise StoppedByFailures(f"baseline {name!r} cannot be made: {reason}")
        return study
