"""The loop: ask, submit, score, tell, until the budget is spent. It decides what is repeated and when to stop."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.cluster import Executor
from evomerge.errors import Interrupted, InvalidInput, StoppedByFailures, noted
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost, Job, Outcome, Score, Scored
from evomerge.logs.run_log import note_event
from evomerge.loop.budget import BudgetAccount
from evomerge.loop.candidate import CandidateInFlight
from evomerge.loop.dispatcher import POLL_SECONDS, Dispatcher, reason_of
from evomerge.loop.outlook import Bar
from evomerge.loop.status_reporter import StatusReporter
from evomerge.loop.steering import Steering
from evomerge.loop.stop import Stop
from evomerge.objective import Collapsed, Objective
from evomerge.racing import Fidelity, Full, ItemHistory, LookResult
from evomerge.recipe import Recipe
from evomerge.spec import BudgetSpec
from evomerge.study.incumbent import incumbent_text
from evomerge.study.search_study import Proposal, SearchStudy
from evomerge.study.status import Status

CANCELLED = "cancelled by the user"
WINDOW = 20  # the latest trials among which more than half failing stops the search


class Controller:
    """Spends a study's budget.

    Args:
        budget: what all runs of the study together may use.
        fidelity: decides on how many items a candidate is scored; all of them by default.
        incumbent: item outcomes of the best trial so far, which others race against.
        history: item outcomes of the trials that have ended, where the fidelity needs them.
        bar: the best baseline that was scored before, which the search is to pass.
        steering: requests to pause, and to end single trials; none without it.
        stored: finds the scores of a recipe on all search items that are known already, so that it is not scored again.
        on_status: called after every event with the status of the search.
    """

    def __init__(
        self,
        search: SearchStudy,
        executor: Executor,
        objective: Objective,
        stop: Stop,
        *,
        budget: BudgetSpec,
        before: Cost | None = None,
        fidelity: Fidelity | None = None,
        incumbent: Scores | None = None,
        history: ItemHistory | None = None,
        bar: Bar | None = None,
        steering: Steering | None = None,
        stored: Callable[[Recipe], Scores | None] = lambda recipe: None,
        batch_size: int | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._search = search
        self._objective = objective
        self._fidelity = Full(objective) if fidelity is None else fidelity
        self._incumbent = incumbent
        self._history = ItemHistory() if history is None else history
        self._steering = Steering() if steering is None else steering
        self._stored = stored
        self._batch_size = batch_size
        self._stop = stop
        self._clock = clock
        self._dispatcher = Dispatcher(executor, stop, self._note_retry, alike=True, clock=clock)
        self._isolated = executor.isolated
        self._in_flight: dict[str, CandidateInFlight] = {}
        self._interrupted: list[Proposal] = []  # of an earlier run, until they are submitted
        self._ended_on_request: set[int] = set()
        self._added_at = 0  # reading of the requests with which we looked for trials that others have enqueued
        self._at_rungs = search.at_rungs()
        self._latest: deque[bool] = deque(maxlen=WINDOW)
        self._account = BudgetAccount(budget, search, bar, clock=clock)
        self._status = StatusReporter(search, executor, self._account, on_status, before=before, clock=clock)

    def run(self) -> None:
        """Run until the budget is spent. While the search is paused, those in flight end and no others begin.

        Raises:
            Interrupted: a signal asked for a stop; trials in flight are scored again by the next run.
            StoppedByFailures: more than half of the latest candidates failed, or no worker can be kept alive.
            InvalidInput: two candidates in a row say that the user's input cannot be used; they are scored again by
                the next run.
        """
        try:
            self._interrupted = self._search.recover(isolated=self._isolated)
            while self._follow_requests() or self._propose() or self._dispatcher.jobs:
                done = self._next_outcome()
                if done is not None:
                    self._finish(*done)
                self._status.report("paused" if self._is_paused else "running", len(self._in_flight))
        except BaseException as reason:
            # Neither a storage that is away nor a study that another controller has taken over may hide why we stop.
            interrupted = isinstance(reason, Interrupted | KeyboardInterrupt)
            with noted(reason, "while attempts were taken back"):
                # An isolated executor's candidates have the attempt again that the end of their controller cuts short.
                innocent = interrupted or isinstance(reason, InvalidInput)
                for candidate in self._in_flight.values() if innocent and not self._isolated else ():
                    self._search.undo_attempt(candidate.proposal)
            with noted(reason, "while the status was stored"):
                self._status.report("interrupted" if interrupted else "failed", len(self._in_flight), force=True)
            raise
        self._status.report("finished", len(self._in_flight), force=True)

    @property
    def _is_paused(self) -> bool:
        return self._steering.paused_by is not None

    def _follow_requests(self) -> bool:
        """End the trials that are to be cancelled; True while the search is paused."""
        self._steering.poll()
        if self._steering.readings != self._added_at:
            self._added_at = self._steering.readings
            self._search.find_added()
        for number in self._steering.cancelled(self._search.study.study_name) - self._ended_on_request:
            self._ended_on_request.add(number)
            self._cancel(number)
        self._account.rest(self._is_paused and not self._dispatcher.jobs)
        return self._is_paused

    def _cancel(self, number: int) -> None:
        key = self._key(number)
        candidate = self._in_flight.pop(key, None)
        if candidate is not None:
            self._dispatcher.cancel(key)
        self._interrupted = [proposal for proposal in self._interrupted if proposal.number != number]
        so_far = candidate.outcome() if candidate is not None and candidate.is_begun else None
        if self._search.cancel(number, CANCELLED, so_far):
            self._status.add_result()

    def _next_outcome(self) -> tuple[Job, Outcome] | None:
        if self._dispatcher.jobs or not self._is_paused:
            return self._dispatcher.wait()
        self._rest()
        return None

    def _rest(self) -> None:
        """Wait a moment: without a job an executor does not."""
        self._stop.look()
        self._clock.sleep(POLL_SECONDS)

    def _propose(self) -> bool:
        """Fill the free workers, as far as the sampler goes. False where the budget allows no further proposal."""
        self._submit_interrupted()
        while self._dispatcher.free > 0:
            if self._account.ended(len(self._in_flight)) is not None:
                return False
            if not self._search.ready:
                if not self._in_flight:
                    self._end_standstill()
                return True
            self._submit(self._search.ask())
        return True

    def _submit_interrupted(self) -> None:
        interrupted, self._interrupted = self._interrupted, []
        for proposal in interrupted:
            # A trial that the budget has no room for stays as it is, for a larger one.
            if self._account.has_room(len(self._in_flight)):
                self._submit(proposal)

    def _end_standstill(self) -> None:
        """Go on where the sampler waits for results, and nobody is working on any: score what is left in the study.

        Raises:
            StoppedByFailures: there is nothing to go on with.
        """
        self._interrupted = self._search.recover(isolated=self._isolated)
        self._submit_interrupted()
        if not self._in_flight and not self._search.ready:
            raise StoppedByFailures(
                "the sampler waits for results, and no trial is in flight: the study holds a proposal that cannot be "
                "scored; `generation_mode: async` does not wait"
            )

    def _submit(self, proposal: Proposal) -> None:
        if proposal.infeasible is not None:  # no fault of the search, which may find many at first
            self._search.refuse(proposal, proposal.infeasible)
            self._status.add_result()
            self._stop.check()
            return
        key = self._key(proposal.number)
        self._search.begin(proposal)
        known = self._stored(proposal.recipe)
        if known is not None:
            outcome = Outcome(
                key=key, attempt=proposal.attempt, result=Scored(known), seconds=known.seconds, worker="stored"
            )
            self._store(proposal, outcome, None)
            self._stop.check()
            return
        draw = self._fidelity.draw(proposal.number, self._incumbent, self._history)
        blocks = self._fidelity.blocks(proposal.number) if draw is None else draw.blocks
        self._in_flight[key] = CandidateInFlight(proposal=proposal, blocks=blocks, incumbent=self._incumbent, draw=draw)
        self._submit_block(key)

    def _key(self, number: int) -> str:
        return f"{self._search.study.study_name}/{number}"

    def _submit_block(self, key: str, worker: str | None = None) -> None:
        candidate = self._in_flight[key]
        proposal = candidate.proposal
        self._dispatcher.submit(
            Score(
                key=key,
                recipe=proposal.recipe,
                items=candidate.block,
                params=proposal.params,
                attempt=proposal.attempt if worker is None else 1,  # each block has its own attempts
                batch_size=self._batch_size,
                worker=worker,
            )
        )

    def _note_retry(self, job: Job) -> None:
        note_event(f"its worker went down with it: attempt {job.attempt}", job=job.key, level=logging.WARNING)
        candidate = self._in_flight[job.key]
        candidate.proposal = replace(candidate.proposal, attempt=job.attempt)
        self._search.begin(candidate.proposal)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Add the outcome of a block: the candidate continues with its next one, or is over."""
        candidate = self._in_flight[job.key]
        candidate.add(outcome)
        estimate: float | None = None
        if isinstance(outcome.result, Scored) and not candidate.is_complete:
            result = self._look(candidate)
            if not result.drop:
                self._submit_block(job.key, outcome.worker)
                return
            estimate = result.estimate
        del self._in_flight[job.key]
        self._store(candidate.proposal, candidate.outcome(), estimate)

    def _store(self, proposal: Proposal, outcome: Outcome, estimate: float | None) -> None:
        """Store the outcome of a proposal, and stop where most of the latest ones have failed."""
        reason = self._tell(proposal, outcome, estimate)
        ended = "dropped" if estimate is not None else "scored"
        note_event(
            f"{ended} by {outcome.worker}" if reason is None else f"failed: {reason}",
            job=outcome.key,
            level=logging.INFO if reason is None else logging.WARNING,
        )
        self._status.add_result()
        self._latest.append(reason is not None)
        if reason is not None and sum(self._latest) > WINDOW // 2:
            raise StoppedByFailures(
                f"{sum(self._latest)} of the latest {len(self._latest)} candidates failed, the last one: {reason}"
            )

    def _look(self, candidate: CandidateInFlight) -> LookResult:
        """Compare a candidate with others, and store the comparison. One without a finite estimate is dropped."""
        look = candidate.look(self._at_rungs)
        result = self._fidelity.look(look)
        if not math.isfinite(result.estimate):
            return replace(result, drop=True, estimate=math.nan)
        candidate.note(result)
        if result.rung is not None and result.value is not None:
            self._at_rungs.setdefault(result.rung, {})[look.trial] = result.value
        self._search.report(look.trial, look.items, result.estimate, candidate.rungs)
        return result

    def _tell(self, proposal: Proposal, outcome: Outcome, estimate: float | None) -> str | None:
        """Store the outcome of a proposal; returns the reason where it failed.

        Args:
            estimate: of a candidate that was dropped, the value that the sampler learns from.
        """
        if not isinstance(outcome.result, Scored):
            return self._fail(proposal, outcome, reason_of(outcome))
        scores = outcome.result.scores
        if estimate is not None:
            dropped = self._objective.assess_dropped(scores, estimate)
            if isinstance(dropped, Collapsed):
                return self._fail(proposal, outcome, dropped.reason)
            self._search.tell(proposal, outcome, dropped)
            self._remember(scores)
            return None
        assessed = self._objective.assess(scores)
        if isinstance(assessed, Collapsed):
            return self._fail(proposal, outcome, assessed.reason)
        self._search.tell(proposal, outcome, assessed, self._succession(proposal, scores, assessed.value))
        self._remember(scores)
        return None

    def _remember(self, scores: Scores) -> None:
        if self._fidelity.needs_history:
            self._history.add(scores)

    def _fail(self, proposal: Proposal, outcome: Outcome, reason: str) -> str:
        self._search.fail(proposal.number, reason, outcome)
        return reason

    def _succession(self, proposal: Proposal, scores: Scores, value: float) -> str | None:
        """Text of a complete candidate that is the best so far, where others race against it."""
        best, number = self._search.tally.best, proposal.number
        if not self._fidelity.needs_incumbent or (best is not None and (value, -number) <= (best[0], -best[1])):
            return None
        self._incumbent = scores
        return incumbent_text(proposal.number, scores)
