"""Writing a trial: its artifact, its attributes, and its state. Shared by the search and its sibling studies."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.errors import first_reason
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost
from evomerge.recipe import Recipe, RecipeSet
from evomerge.storage import attributes
from evomerge.storage.attributes import Writable, write_document
from evomerge.storage.opening import in_transaction
from evomerge.storage.optuna_internals import id_of
from evomerge.study.item_outcomes import summary, write_items

_Result = TypeVar("_Result")


class TrialWriter:
    """Writes the trials of one study, by their numbers.

    Args:
        artifacts: folder of the outcomes of items.
        check_hold: raises when another controller has taken the study over; called before each write.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        *,
        artifacts: Path,
        check_hold: Callable[[], None] = lambda: None,
    ) -> None:
        self._study = study
        self._storage = storage
        self._artifacts = artifacts
        self._check_hold = check_hold
        self._ids: dict[int, int] = {}

    def ask(self) -> optuna.Trial:
        """Add a trial to the study."""
        self._check_hold()
        trial = self._study.ask()
        self._ids[trial.number] = id_of(trial)
        return trial

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

        def store() -> None:
            # What reported an error may have been stored all the same; its repetition then changes nothing.
            with suppress(UpdateFinishedTrialError):
                write()
                self._study.tell(number, value, state=state, skip_if_finished=True)

        self.transaction(store)

    def upload(self, number: int, scores: Scores) -> None:
        """Store the outcomes of items of a trial that is not finished yet.

        Not part of its transaction, whose repetition after an error of the storage would store them twice.
        """
        self._artifacts.mkdir(parents=True, exist_ok=True)
        with first_reason(tempfile.TemporaryDirectory(), "while a temporary folder was removed") as scratch:
            path = Path(scratch) / "items.parquet"
            write_items(path, scores)
            upload_artifact(
                artifact_store=FileSystemArtifactStore(self._artifacts),
                file_path=str(path),
                study_or_trial=_reference(number, self._id(number)),
                storage=self._storage,
                mimetype="application/vnd.apache.parquet",
            )

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

    def set_effort(self, number: int, seconds: Mapping[str, float], cost: Cost) -> None:
        """Seconds by phase, and the cost."""
        spent = {phase: round(value, 4) for phase, value in seconds.items() if math.isfinite(value)}
        self.set(number, attributes.SECONDS, spent)
        self.set_cost(number, cost)

    def set_cost(self, number: int, cost: Cost) -> None:
        """The cost of a trial. A part that nobody could measure is not counted."""
        content = {name: round(value, 4) for name, value in asdict(cost).items() if math.isfinite(value)}
        self.set(number, attributes.COST, content)

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
        reported = self._storage.get_trial(self._id(number)).intermediate_values
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


def _reference(number: int, trial_id: int) -> FrozenTrial:
    """A trial without content that names the stored one. Reading that would cost a query for each of its parts."""
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial_id,
    )
