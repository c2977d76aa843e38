"""Writing a trial: its artifact, its attributes, and its state. Shared by the search and its sibling studies."""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.artifacts import ArtifactMeta
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.evaluation.scores import Scores
from evomerge.evaluation_checkpoints import discard
from evomerge.jobs import Cost, Outcome
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.object_store.optuna_store import PatientArtifacts, optuna_store
from evomerge.recipe import Recipe, RecipeSet
from evomerge.storage import attributes
from evomerge.storage.attributes import Writable, write_document
from evomerge.storage.opening import in_transaction
from evomerge.storage.optuna_internals import ARTIFACT, id_of, id_of_study
from evomerge.storage.patience import IMPATIENT, StoragePatience
from evomerge.storage.single_writer import SingleWriterStorage
from evomerge.study.dashboard import write_trial_note
from evomerge.study.item_outcomes import ITEMS, MIMETYPE, summary, write_items

_Result = TypeVar("_Result")


class TrialWriter:
    """Writes the trials of one study, by their numbers.

    Args:
        artifacts: folder of the outcomes of items.
        check_hold: raises when another controller has taken the study over; called before each write.
        patience: with which the folder of artifacts is waited for; the storage has its own.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        *,
        artifacts: Path,
        check_hold: Callable[[], None] = lambda: None,
        patience: StoragePatience = IMPATIENT,
    ) -> None:
        self._study = study
        self._storage = storage
        self._artifacts = ArtifactFolder(artifacts, patience)
        self._check_hold = check_hold
        self._patience = patience
        self._ids: dict[int, int] = {}
        self._running: set[int] | None = None  # trials that this process knows to be running
        self._ended: list[int] = []  # trials that this process has finished, until they are taken

    def add(self, fill: Callable[[optuna.Trial], None] = lambda trial: None) -> FrozenTrial:
        """Add a trial to the study, with all that `fill` gives it.

        Where the storage has stored a trial without acknowledging it, that one is taken: nobody else adds trials that
        run.
        """
        self._check_hold()
        known = self._known_running()

        def write() -> FrozenTrial:
            trial = self._study.ask()
            self._ids[trial.number] = id_of(trial)
            fill(trial)
            return self._storage.get_trial(id_of(trial))

        def stored() -> FrozenTrial | None:
            self._ids.clear()
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            return next((trial for trial in running if trial.number not in known), None)

        added = in_transaction(self._storage, write, stored)
        known.add(added.number)
        return added

    def _known_running(self) -> set[int]:
        if self._running is None:
            trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._running = {trial.number for trial in trials}
        return self._running

    def transaction(self, write: Callable[[], _Result]) -> _Result:
        """Store all that `write` writes, or nothing of it; see `evomerge.storage.opening.in_transaction`."""
        return in_transaction(self._storage, write)

    def finish(
        self,
        number: int,
        state: TrialState,
        write: Callable[[], None] = lambda: None,
        value: float | Sequence[float] | None = None,
    ) -> None:
        """Store the state of a trial together with the attributes that `write` gives it, in one transaction."""

        def store() -> bool:
            write()
            self._study.tell(number, value, state=state)
            return True

        def stored() -> bool | None:
            return self.stored(number).state.is_finished() or None

        in_transaction(self._storage, store, stored)
        self._known_running().discard(number)
        self._ended.append(number)

    def take_ended(self) -> list[FrozenTrial]:
        """The trials that were finished since the last call, in that order, as the storage has them."""
        ended, self._ended = self._ended, []
        return [self.stored(number) for number in ended]

    def upload(self, scores: Scores) -> ArtifactMeta:
        """Store the outcomes of items in the folder of artifacts, before the transaction of the trial that names them.

        That is repeated when the storage is away, and would store them twice. A file that it never names is an orphan.
        """
        self._check_hold()
        content = io.BytesIO()
        write_items(content, scores)
        artifact = ArtifactMeta(artifact_id=str(uuid.uuid4()), filename=ITEMS, mimetype=MIMETYPE, encoding=None)
        store = PatientArtifacts(optuna_store(self._artifacts), self._artifacts.path, self._wait)
        store.write(artifact.artifact_id, content)
        return artifact

    def discard_checkpoints(self, outcome: Outcome) -> None:
        """Delete what was kept of an evaluation or a training while it ran: its result is stored now."""
        discard(ArtifactFolder(self._artifacts.path), outcome.checkpoints)

    def attach(self, number: int, artifact: ArtifactMeta) -> None:
        """Name an artifact in a trial that is not finished yet, as `optuna.artifacts.upload_artifact` does."""
        key = f"{ARTIFACT}{artifact.artifact_id}"
        self._storage.set_trial_system_attr(self._id(number), key, json.dumps(asdict(artifact)))

    def _wait(self, write: Callable[[], None], folder: Path) -> None:
        self._patience.retry(write, f"the folder {folder}", folder)

    def set(self, number: int, key: str, value: Any) -> None:
        """A small attribute of a trial."""
        self._check_hold()
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def attributes_of(self, number: int) -> Writable:
        """A trial as an object that texts and documents can be written to."""
        return _Attributes(self, number)

    def set_result(self, number: int, recipe: Recipe | RecipeSet, scores: Scores, stderr: float | None) -> None:
        """The recipe that was scored, and its scores by task with the standard error of the objective."""
        self.set(number, attributes.RECIPE, recipe.digest)
        if isinstance(recipe, Recipe) and recipe.layers:
            self.set(number, attributes.LAYERS, len(recipe.layers))
        document = {"objective_stderr": stderr, "tasks": summary(scores)}
        write_document(self.attributes_of(number), attributes.SCORES, document)

    def set_companion(self, number: int, companion: float | None) -> None:
        """The number that ranks results of the same value, where there is one."""
        if companion is not None and math.isfinite(companion):
            self.set(number, attributes.COMPANION, companion)

    def set_note(self, number: int, markdown: str) -> None:
        """The text that Optuna Dashboard shows beside a trial, which has none yet."""
        self._check_hold()
        write_trial_note(self._storage, id_of_study(self._study), self._id(number), markdown)

    def set_effort(self, number: int, seconds: Mapping[str, float], cost: Cost) -> None:
        """Seconds by phase, and the cost."""
        spent = {phase: round(value, 4) for phase, value in seconds.items() if math.isfinite(value)}
        self.set(number, attributes.SECONDS, spent)
        self.set_cost(number, cost)

    def set_cost(self, number: int, cost: Cost) -> None:
        """The cost of a trial. A part that nobody could measure is not counted."""
        content = {name: round(value, 4) for name, value in asdict(cost).items() if math.isfinite(value)}
        self.set(number, attributes.COST, content)

    def find_added(self) -> None:
        """Take up the trials that others have added, where the storage does not see them by itself."""
        if isinstance(self._storage, SingleWriterStorage):
            self._storage.find_added(id_of_study(self._study))

    def stored(self, number: int) -> FrozenTrial:
        """A trial as the storage has it."""
        return self._storage.get_trial(self._id(number))

    def start(self, number: int) -> None:
        """Take an enqueued trial out of the queue."""
        self._check_hold()
        self.transaction(lambda: self._storage.set_trial_state_values(self._id(number), TrialState.RUNNING))

    def report(self, number: int, step: int, value: float) -> None:
        """An intermediate value of a trial: Optuna Dashboard shows them as a curve."""
        self._check_hold()
        self._storage.set_trial_intermediate_value(self._id(number), step, value)

    def report_last(self, number: int, value: float) -> None:
        """The value of a pruned trial, for which Optuna takes its last intermediate one."""
        # An earlier attempt may have got farther than this.
        reported = self.stored(number).intermediate_values
        self.report(number, max(reported, default=0), value)

    def _id(self, number: int) -> int:
        if number not in self._ids:
            self._ids = {trial.number: id_of(trial) for trial in self._study.get_trials(deepcopy=False)}
        return self._ids[number]


@dataclass(frozen=True)
class _Attributes:
    writer: TrialWriter
    number: int

    def set_user_attr(self, key: str, value: Any) -> None:
        self.writer.set(self.number, key, value)
