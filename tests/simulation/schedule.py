"""One schedule: controllers of one study under faults, the last one undisturbed, and what must be true afterwards."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from simulation import doubles
from simulation.chained_sampler import ChainedSampler, OneNumber, TheValue, chain_is_whole
from simulation.patched_modules import simulated
from simulation.shared_storage import NAME, SharedStorage
from simulation.simulated_executor import SimulatedExecutor, value_of
from simulation.world import CALM, Faults, Hung, Process, World

from evomerge.errors import EvomergeError
from evomerge.leases import lock
from evomerge.leases.holding_process import Process as HoldingProcess
from evomerge.leases.lease import Lease, LeaseStore, LeaseTimes, holder_in, record_in
from evomerge.loop.controller import Controller
from evomerge.loop.stop import Stop
from evomerge.objective import Objective
from evomerge.spec import BudgetSpec
from evomerge.storage import attributes
from evomerge.storage.opening import with_retries
from evomerge.storage.patience import StorageAway, StoragePatience
from evomerge.study.search_study import MAX_ATTEMPTS, SearchStudy

__all__ = ["SEMANTICS", "Findings", "run_schedule", "simulated"]

SEMANTICS = ("sqlite", "server", "journal", "redis")
PATIENCE = 120.0
MOST_SECONDS = 12 * 3600.0  # of simulated time, before a schedule counts as hung
_TIMES = LeaseTimes()
_LONGEST_WELL = 45.0  # seconds without a sign of life: some fail, and locks of journals are broken after 30 s
_FAULTS = Faults(
    kill=0.004,
    freeze=0.002,
    refuse=0.01,
    lose_answer=0.01,
    partition=0.002,
    delay=0.02,
    crash=0.08,
    pre_empt=0.1,
    hang=0.02,
)


@dataclass
class Findings:
    """The outcome of a schedule.

    Attributes:
        wrong: invariants that did not hold, in words.
        seconds: of simulated time.
    """

    seed: int
    semantics: str
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class WatchedLease:
    """The place of the lease as one process sees it: across what fails, and watched for a takeover of a living one."""

    def __init__(self, store: LeaseStore, run: Run, process: Process) -> None:
        self._store = store
        self._run = run
        self._process = process

    def read(self) -> str | None:
        text: str | None = self._run.world.call(self._store.read, self._run.storage.away, writes=False)
        return text

    def swap(self, old: str | None, new: str) -> bool:
        sent = self._run.world.now

        def swap() -> bool:
            swapped = self._store.swap(old, new)
            if swapped and self._store.read() == new:  # not one that was stopped since, while others took it
                self._run.note_swap(old, new, sent, self._process)
            return swapped

        return bool(self._run.world.call(swap, self._run.storage.away))

    def guard(self, storage: BaseStorage, holder: str) -> None:
        self._store.guard(storage, holder)


class Run:
    """One schedule of one seed."""

    def __init__(self, seed: int, semantics: str, folder: Path) -> None:
        self.findings = Findings(seed, semantics)
        self.world = World(f"{semantics} {seed}")
        self.world.on_over = self._on_over
        draw = self.world.draw
        self.folder = folder
        self.semantics = semantics
        self.workers = draw.choice([1, 1, 2, 3])
        self.budget = draw.randint(3, 7)
        self.generation = draw.choice([0, 0, 2, 3])
        self.pace = draw.choice([1.0, 1.0, 1.0, 1.0, 10.0])
        self.faults = _FAULTS.scaled(draw.choice([0.3, 1.0, 1.0, 2.5]))
        self.lives = draw.randint(1, 4)  # of disturbed controllers that one supervisor starts
        self.is_calm = False
        self.is_done = False
        self.acknowledged: dict[int, float] = {}
        self.crashes: Counter[int] = Counter()  # after which a trial was tried again
        self.blame: Counter[int] = Counter()  # attempts of a trial that failed by its own fault
        self.numbers = [0]  # of the takeovers of the lease
        self.stops: dict[int, Stop] = {}
        self.holders: set[int] = set()  # who has held the study
        self.latest_holder: int | None = None  # of a lease
        self.signs: dict[str, tuple[float, Process]] = {}  # holder -> its latest refresh, and its process
        self.storage = SharedStorage(self.world, semantics, folder)
        self._calm_tries = 0

    def go(self) -> Findings:
        """Run the schedule and look at what became of the study."""
        world = self.world
        doubles.enter(world)
        self._plan()
        self._start("host-0", self.faults)
        try:
            world.run()
        except Hung as hung:
            self._is_wrong(f"hung: {hung}")
        else:
            if not self.is_done:
                self._is_wrong("hung: no controller could end the search")
            try:
                self._check_end()
            except Exception as error:  # what a bug has made of the study
                self._is_wrong(f"the study cannot be read: {type(error).__name__}: {error}")
        finally:
            self.findings.counts = world.counts
            self.findings.seconds = world.now
            world.close()
        return self.findings

    def _is_wrong(self, what: str) -> None:
        self.findings.wrong.append(what)

    def _plan(self) -> None:
        """What happens at any moment, whatever a process is doing."""
        world = self.world
        draw = world.draw
        for _ in range(draw.choice([0, 0, 1, 2])):
            world.at(draw.uniform(0.0, 90.0), lambda: self._start(draw.choice(["host-0", "host-1"]), self.faults))
        for _ in range(draw.choice([0, 1, 2])):
            world.at(draw.uniform(0.0, 120.0), self._set_clock)
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            world.at(draw.uniform(0.0, 20.0), self.storage.enqueue)
        for _ in range(draw.choice([0, 0, 1])):
            world.at(draw.uniform(0.0, 30.0), self._stop_some)
        for _ in range(draw.choice([0, 0, 1])):
            world.at(draw.uniform(0.0, 30.0), self._freeze_some)
        for _ in range(draw.choice([0, 0, 1])):
            world.at(draw.uniform(0.0, 30.0), self._kill_some)

    def _alive(self) -> list[Process]:
        return [each for each in self.world.processes.values() if not each.is_over]

    def _set_clock(self) -> None:
        self.world.counts["clock jump"] += 1
        host = self.world.draw.choice(["host-0", "host-1"])
        self.world.skews[host] += self.world.draw.choice([-1, 1]) * 10 ** self.world.draw.uniform(0.0, 5.0)  # type: ignore[assignment]

    def _stop_some(self) -> None:
        for process in self._alive()[:1]:
            self.world.counts["signal"] += 1
            if process.pid in self.stops:
                self.stops[process.pid].request("SIGTERM")

    def _freeze_some(self) -> None:
        for process in self._alive()[-1:]:
            process.freeze(10 ** self.world.draw.uniform(0.0, 3.0))

    def _kill_some(self) -> None:
        for process in self._alive()[:1]:
            process.kill()

    def _start(self, host: str, faults: Faults) -> None:
        if self.is_done:
            return
        self.world.counts["controller"] += 1
        self.world.start(host, CALM if self.is_calm else faults, self._main)

    def _on_over(self, process: Process) -> None:
        """Another controller, as a supervisor starts one; the last ones are undisturbed."""
        if process.code == 0:
            self.is_done = True
            return
        self.lives -= 1
        if self.is_done:
            return
        if self.lives <= 0:
            self._calm()
        others = [each for each in self._alive() if each is not process]
        if self.lives > 0 or not others:
            if self.is_calm:
                self._calm_tries += 1
                if self._calm_tries > 20:
                    return
            delay = self.world.draw.choice([0.0, self.world.draw.uniform(0.0, 100.0)])
            host = self.world.draw.choice(["host-0", "host-0", "host-1"])
            self.world.at(self.world.now + delay, lambda: self._start(host, self.faults))

    def _calm(self) -> None:
        self.is_calm = True
        for process in self.world.processes.values():
            process.faults = CALM
            process.cut_off_until = 0.0

    def _main(self, process: Process) -> None:
        try:
            with ExitStack() as stack:
                self._search(process, stack)
            process.code = 0
        except EvomergeError as error:
            process.error, process.code = error, error.exit_code
        except Exception as error:
            process.error, process.code = error, 1
        self._check_code(process)

    def _check_code(self, process: Process) -> None:
        code, error = process.code, process.error
        said = f"exit code {code} of process {process.pid} at {self.world.now:.1f} s: {type(error).__name__}: {error}"
        disturbed = process.faults is not CALM or self.world.counts.total() > 0
        if code == 6 and len(self.world.processes) > 1:
            return
        if isinstance(error, StorageAway):
            disturbed = process.troubled_until > -math.inf or process.pid not in self.holders
        if code == 3 and disturbed:
            return
        if code != 0:
            self._is_wrong(said)

    def _search(self, process: Process, stack: ExitStack) -> None:
        patience = StoragePatience(seconds=PATIENCE, clock=process.clock)
        stop = self.stops[process.pid] = Stop()
        patience.check = stop.check
        held = stack.enter_context(self._hold(process, patience))
        self.holders.add(process.pid)
        storage = self.storage.open(process, patience)
        held.guard(storage)
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", sampler=self._sampler(), load_if_exists=True
        )
        search = SearchStudy(
            study,
            storage,
            OneNumber(),  # type: ignore[arg-type]
            artifacts=self.folder / "artifacts",
            check_hold=held.check,
            patience=patience,
        )
        self._watch(search)
        search.start(list)
        executor = SimulatedExecutor(process, self.workers, self.pace, self._note_second_try, self._note_fault)
        objective: Objective = TheValue()  # type: ignore[assignment]
        budget = BudgetSpec(trials=self.budget)
        Controller(search, executor, objective, stop, budget=budget, clock=process.clock).run()

    def _sampler(self) -> BaseSampler:
        return ChainedSampler(self.generation)

    def _note_second_try(self, key: str) -> None:
        if self._is_latest_holder():
            self.crashes[int(key.rpartition("/")[2])] += 1

    def _is_latest_holder(self) -> bool:
        """Whether no other has taken the lease over: what a former holder does, it can no longer store."""
        return self.latest_holder in (None, self.world.process.pid)

    def _note_fault(self, key: str, is_tried_again: bool) -> None:
        self.blame[int(key.rpartition("/")[2])] += 1 if is_tried_again else MAX_ATTEMPTS

    def _watch(self, search: SearchStudy) -> None:
        """Remember the results that a controller was told to be stored."""
        tell = search.tell

        def told(proposal: Any, outcome: Any, assessed: Any, incumbent: str | None = None) -> None:
            tell(proposal, outcome, assessed, incumbent)
            if not self._is_latest_holder():  # the result that it found stored is that of the present one
                return
            if proposal.number in self.acknowledged:
                self._is_wrong(f"doubled: the result of trial {proposal.number} was told twice")
            self.acknowledged[proposal.number] = assessed.value

        search.tell = told  # type: ignore[method-assign]

    @contextmanager
    def _hold(self, process: Process, patience: StoragePatience) -> Iterator[lock.Hold]:
        if self.semantics == "sqlite":
            self.storage.lock_file(process)
            yield lock.Hold("")
            return
        with_retries(self.world.trouble, clock=process.clock)
        host, pid = process.host, process.pid
        lease = Lease(
            WatchedLease(self.storage.lease_store(process), self, process),
            what="the study",
            process=HoldingProcess(host=host, boot=host, pid=pid, start=str(pid)),
            clock=process.clock,
        )
        with lock.keep(lease, patience=patience, clock=process.clock) as held:
            self._watch_hold(held, lease, process)
            yield held

    def _watch_hold(self, held: lock.Hold, lease: Lease, process: Process) -> None:
        """No check of the hold may pass whose latest sign of life is too old."""
        check = held.check

        def checked() -> None:
            check()
            silent = self.world.now - self.signs.get(lease.id, (self.world.now, process))[0]
            if silent > _TIMES.silence - _TIMES.margin + 1e-6:
                self._is_wrong(f"a holder that was silent for {silent:.1f} s may write")

        held.check = checked  # type: ignore[method-assign]

    def note_swap(self, old: str | None, new: str, sent: float, process: Process) -> None:
        """Watch the lease: no other may take it from a living holder that has given signs of life."""
        before, after = holder_in(old), holder_in(new)
        if before in self.signs and after == before:
            well = self.world.now - max(self.signs[before][0], process.troubled_until)
            if well > _LONGEST_WELL:
                self._is_wrong(f"process {process.pid} was well and gave no sign of life for {well:.1f} s")
        if before in self.signs and after not in (None, before):  # not one that ended right after it had stored it
            seen, former = self.signs[before]
            silent = self.world.now - seen
            well = self.world.now - max(seen, former.troubled_until)
            if not former.is_over and (silent < _TIMES.silence - 1e-6 or well > _TIMES.silence + 10.0):
                self._is_wrong(f"the lease of process {former.pid} was taken after {silent:.1f} s of silence")
        if after is not None:
            self.latest_holder = process.pid
            self.signs[after] = (self.world.now, process)
            number = record_in(new)["number"]
            if before != after and number <= self.numbers[-1]:
                self._is_wrong(f"takeover {number} after {self.numbers[-1]}")
            self.numbers.append(number)

    def _check_end(self) -> None:
        if self.world.now > MOST_SECONDS:
            self._is_wrong(f"hung: {self.world.now:.0f} s")
        for number, crashes in self.crashes.items():
            if crashes >= MAX_ATTEMPTS:
                self._is_wrong(f"attempts: trial {number} was tried again after each of {crashes} crashes")
        trials = self.storage.read_trials()
        finished = [trial for trial in trials if trial.state.is_finished() and not _is_interrupted(trial)]
        if self.is_done and len(finished) != self.budget:
            self._is_wrong(f"lost: {len(finished)} of {self.budget} trials are finished")
        if sorted(trial.number for trial in trials) != list(range(len(trials))):
            self._is_wrong(f"doubled: the numbers of trials are {sorted(trial.number for trial in trials)}")
        if left := [trial.number for trial in trials if trial.state is TrialState.RUNNING]:
            self._is_wrong(f"lost: trials {left} are left unfinished")
        for trial in finished:
            if trial.state is TrialState.FAIL and self.blame[trial.number] < MAX_ATTEMPTS:
                self._is_wrong(f"lost: trial {trial.number} failed by no fault of its own")
        complete = {trial.number: trial for trial in trials if trial.state is TrialState.COMPLETE}
        for number, value in self.acknowledged.items():
            if number not in complete or complete[number].values != [value]:
                self._is_wrong(f"lost: the result of trial {number}, which was acknowledged")
        for number, trial in complete.items():
            if trial.values != [value_of(trial.params["x"])]:
                self._is_wrong(f"doubled: trial {number} has the value of another one")
        told = sorted(trial.user_attrs[attributes.TELL] for trial in complete.values())
        if told != list(range(len(told))):
            self._is_wrong(f"doubled: results were told as numbers {told}")
        if not self.world.counts["enqueued"] and not chain_is_whole(trials, self.generation, self.workers):
            self._is_wrong("proposals differ from those of the undisturbed run")
        writers = [
            each
            for each, _ in itertools.groupby(each for each in self.storage.writers() if each not in self.storage.guests)
        ]
        if len(set(writers)) < len(writers):
            self._is_wrong(f"two writers: {writers}")


def _is_interrupted(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get(attributes.INTERRUPTED))


def run_schedule(seed: int, semantics: str, folder: Path) -> Findings:
    """Run one schedule inside a `simulated` block."""
    own = folder / f"{semantics}-{seed}"
    own.mkdir()
    try:
        return Run(seed, semantics, own).go()
    finally:
        shutil.rmtree(own, ignore_errors=True)
