"""The loop: ask, submit, score, tell, until the budget is spent. It decides what is tried again and when to stop."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from evomerge.cluster import Executor
from evomerge.errors import Interrupted, StoppedByFailures, StudyHeld
from evomerge.evaluation.evaluator import Scores
from evomerge.jobs import Job, Outcome, Score, Scored
from evomerge.loop.budget import Spent, reached, share, spent_by
from evomerge.loop.candidate import Running
from evomerge.loop.dispatcher import Dispatcher, reason_of
from evomerge.loop.stop import Stop
from evomerge.objective import Objective
from evomerge.racing import Finding, Full
from evomerge.spec import BudgetSpec
from evomerge.storage import attributes
from evomerge.study.incumbent import incumbent_text
from evomerge.study.search_study import Proposal, SearchStudy

WINDOW = 20  # the latest trials among which more than half failing stops the search
STATUS_SECONDS = 2.0  # how often the status attribute is written at most


@dataclass(frozen=True)
class Status:
    """Where a search stands: what the progress line shows and `evomerge status` reads from the study."""

    state: str  # running · finished · interrupted · failed
    finished: int
    budget: int
    failed: int
    running: int
    best: float | None
    best_trial: int | None
    trials_per_hour: float | None
    seconds_left: float | None
    run_seconds: float
    workers: Mapping[str, int]
    restarts: int
    host: str
    pid: int
    updated: float
    dropped: int = 0
    ended: str | None = None


class Controller:
    """Spends a study's budget.

    Args:
        budget: what all runs of the study together may use.
        fidelity: on how many items a candidate is scored; all of them by default.
        incumbent: item outcomes of the best trial so far, which others race against.
        on_status: called after every event with where the search stands.
    """

    def __init__(
        self,
        search: SearchStudy,
        executor: Executor,
        objective: Objective,
        stop: Stop,
        *,
        budget: BudgetSpec,
        fidelity: Full | None = None,
        incumbent: Scores | None = None,
        batch_size: int | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self._search = search
        self._executor = executor
        self._objective = objective
        self._budget = budget
        self._fidelity = fidelity or Full()
        self._incumbent = incumbent
        self._batch_size = batch_size
        self._on_status = on_status
        self._dispatcher = Dispatcher(executor, stop, self._note_retry)
        self._running: dict[str, Running] = {}
        self._at_rungs = search.at_rungs()
        self._latest: deque[bool] = deque(maxlen=WINDOW)
        self._started = time.monotonic()
        self._told_here = 0
        self._written = -math.inf
        self._before = float((search.study.user_attrs.get(attributes.STATUS) or {}).get("run_seconds", 0.0))
        self._share_before = share(budget, self._spent())

    def run(self) -> None:
        """Go on until the budget is spent.

        Raises:
            Interrupted: a signal asked for a stop; trials in flight are scored again by the next run.
            StoppedByFailures: more than half of the latest candidates failed, or no worker can be kept alive.
        """
        state = "failed"
        try:
            for proposal in self._search.recover():
                if self._has_room():  # what the budget has no room for stays as it is, for a larger one
                    self._submit(proposal)
            while self._propose() or self._dispatcher.jobs:
                done = self._dispatcher.wait()
                if done is not None:
                    self._finish(*done)
                self._report("running")
            state = "finished"
        except (Interrupted, KeyboardInterrupt):
            state = "interrupted"
            with suppress(Interrupted, StudyHeld):
                for running in self._running.values():
                    self._search.give_back(running.proposal)
            raise
        finally:
            # Neither a storage that is away nor a study that another controller has taken over may hide why we stop.
            with suppress(Interrupted, StudyHeld):
                self._report(state, force=True)

    def _propose(self) -> bool:
        """Fill the free workers, as far as the sampler goes. False where the budget allows no further proposal."""
        while self._dispatcher.free > 0:
            if self._ended() is not None:
                return False
            if not self._search.ready:
                return True
            self._submit(self._search.ask())
        return True

    def _ended(self) -> str | None:
        """Which part of the budget is filled by the trials that are finished and in flight."""
        return reached(self._budget, self._spent())

    def _has_room(self) -> bool:
        """Whether a trial that was begun by a killed run may be ended: the run itself would have let it end, too."""
        return reached(BudgetSpec(trials=self._budget.trials, hours=self._budget.hours), self._spent()) is None

    def _spent(self) -> Spent:
        return spent_by(self._search, len(self._running), self._run_seconds())

    def _run_seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def _submit(self, proposal: Proposal) -> None:
        key = f"{self._search.study.study_name}/{proposal.number}"
        self._search.begin(proposal)
        self._running[key] = Running(proposal, self._fidelity.blocks(proposal.number), self._incumbent)
        self._submit_block(key)

    def _submit_block(self, key: str, worker: str | None = None) -> None:
        running = self._running[key]
        proposal = running.proposal
        self._dispatcher.submit(
            Score(
                key,
                proposal.recipe,
                running.block,
                proposal.params,
                proposal.attempt if worker is None else 1,  # each block has its own attempts
                batch_size=self._batch_size,
                worker=worker,
            )
        )

    def _note_retry(self, job: Job) -> None:
        running = self._running[job.key]
        running.proposal = replace(running.proposal, attempt=job.attempt)
        self._search.begin(running.proposal)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Take in the outcome of a block: the candidate goes on with its next one, or is over."""
        running = self._running[job.key]
        running.add(outcome)
        estimate: float | None = None
        if isinstance(outcome.result, Scored) and not running.is_complete:
            finding = self._look(running)
            if finding is not None and not finding.drop:
                self._submit_block(job.key, outcome.worker)
                return
            estimate = math.nan if finding is None else finding.estimate
        del self._running[job.key]
        reason = self._tell(running, estimate)
        self._told_here += 1
        self._latest.append(reason is not None)
        if reason is not None and sum(self._latest) > WINDOW // 2:
            raise StoppedByFailures(
                f"{sum(self._latest)} of the latest {len(self._latest)} candidates failed, the last one: {reason}"
            )

    def _look(self, running: Running) -> Finding | None:
        """Compare a candidate with others; None where its scores cannot be."""
        look = running.look(self._at_rungs)
        try:
            finding = self._fidelity.look(look)
        except (ArithmeticError, ValueError):  # scores of a collapsed merge overflow, or are infinite
            return None
        if not math.isfinite(finding.estimate):
            return None
        running.note(finding)
        if finding.rung is not None and finding.value is not None:
            self._at_rungs.setdefault(finding.rung, {})[look.trial] = finding.value
        self._search.report(look.trial, look.items, finding.estimate, running.rungs)
        return finding

    def _tell(self, running: Running, estimate: float | None) -> str | None:
        """Store what came of a proposal; the reason where it failed.

        Args:
            estimate: of a candidate that was dropped, what the sampler shall learn.
        """
        proposal, outcome = running.proposal, running.outcome()
        result = outcome.result
        if not isinstance(result, Scored):
            self._search.fail(proposal.number, reason_of(outcome), outcome)
            return reason_of(outcome)
        try:
            value = self._objective.value(result.scores) if estimate is None else estimate
            violations = self._objective.violations(result.scores) if estimate is None else []
            objectives = self._objective.points(result.scores) if self._objective.several else None
            stderr = self._objective.stderr(result.scores)
            finite = all(map(math.isfinite, [value, *violations, *(objectives or [])]))
            reason = None if finite else f"the objective is {value}"
        except (ArithmeticError, ValueError) as error:  # scores of a collapsed merge overflow, or are infinite
            reason = f"the objective cannot be computed: {error}"
        if reason is not None:
            self._search.fail(proposal.number, reason, outcome)
            return reason
        if estimate is not None:
            self._search.tell(proposal, outcome, value, stderr, dropped=True)
            return None
        self._search.tell(
            proposal,
            outcome,
            value,
            stderr,
            objectives=objectives,
            violations=violations,
            companion=self._objective.companion(result.scores),
            incumbent=self._succession(proposal, result.scores, value),
        )
        return None

    def _succession(self, proposal: Proposal, scores: Scores, value: float) -> str | None:
        """What the study keeps of a complete candidate that is the best so far, where others race against it."""
        best, number = self._search.best, proposal.number
        if type(self._fidelity) is Full or (best is not None and (value, -number) <= (best[0], -best[1])):
            return None
        self._incumbent = scores
        return incumbent_text(proposal.number, scores)

    def _report(self, state: str, force: bool = False) -> None:
        status = self._status(state)
        self._on_status(status)
        if force or time.monotonic() - self._written >= STATUS_SECONDS:
            self._search.set(attributes.STATUS, asdict(status))
            self._written = time.monotonic()

    def _status(self, state: str) -> Status:
        search, best = self._search, self._search.best
        finished = search.finished
        elapsed = time.monotonic() - self._started
        rate = self._told_here / elapsed if self._told_here else None
        used = share(self._budget, spent_by(search, 0, self._run_seconds()))
        gained = used - self._share_before
        workers = self._executor.workers()
        states = [worker.state for worker in workers]
        return Status(
            state=state,
            finished=finished,
            budget=self._budget.trials,
            failed=search.failed,
            dropped=search.dropped,
            running=len(self._running),
            best=best[0] if best else None,
            best_trial=best[1] if best else None,
            trials_per_hour=rate * 3600 if rate else None,
            seconds_left=(1 - used) / gained * elapsed if gained > 0 else None,
            run_seconds=self._run_seconds(),
            workers={name: states.count(name) for name in sorted(set(states))},
            restarts=sum(worker.restarts for worker in workers),
            host=socket.gethostname(),
            pid=os.getpid(),
            updated=time.time(),
            ended=self._ended() if state == "finished" else None,
        )


def status_of(content: Mapping[str, Any]) -> Status:
    """The status that a study keeps."""
    return Status(**content)
