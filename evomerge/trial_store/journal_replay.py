"""The content of a journal in memory: read in a fraction of Optuna's time, with the trials of each study by state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

from optuna.distributions import BaseDistribution, check_distribution_compatibility, json_to_distribution
from optuna.exceptions import DuplicatedStudyError

from evomerge.errors import InvalidInput
from evomerge.storage.optuna_internals import JournalOperation, ReplayResult
from evomerge.trial_store.trial_memory import TrialMemory, with_changes

__all__ = ["JournalReplay"]

# What Optuna raises to whoever has written an operation that cannot be applied, a RuntimeError for a finished trial.
_REFUSALS: Final = (DuplicatedStudyError, KeyError, RuntimeError, ValueError)

Log = dict[str, Any]


class JournalReplay(ReplayResult):
    """The content of a journal. While nobody has been given a trial of it, trials are changed in place.

    Attributes:
        given_out: somebody may have been given trials: a changed one takes the place of the old one.
        latest: id of the latest trial that this process has created.
    """

    def __init__(self, worker_id_prefix: str) -> None:
        super().__init__(worker_id_prefix)
        self.given_out = False
        self._memories: dict[int, TrialMemory] = {}
        self._parsed: dict[str, BaseDistribution] = {}
        self._known: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
        operation = JournalOperation
        self._operations: dict[int, Callable[[Log], None]] = {
            int(operation.CREATE_STUDY): self._apply_create_study,
            int(operation.DELETE_STUDY): self._apply_delete_study,
            int(operation.SET_STUDY_USER_ATTR): self._apply_set_study_user_attr,
            int(operation.SET_STUDY_SYSTEM_ATTR): self._apply_set_study_system_attr,
            int(operation.CREATE_TRIAL): self._apply_create_trial,
            int(operation.SET_TRIAL_PARAM): self._apply_set_trial_param,
            int(operation.SET_TRIAL_STATE_VALUES): self._apply_set_trial_state_values,
            int(operation.SET_TRIAL_INTERMEDIATE_VALUE): self._apply_set_trial_intermediate_value,
            int(operation.SET_TRIAL_USER_ATTR): self._apply_set_trial_user_attr,
            int(operation.SET_TRIAL_SYSTEM_ATTR): self._apply_set_trial_system_attr,
            int(operation.DISCARD_TRIALS): lambda log: None,  # Optuna ignores it, too
        }

    @property
    def latest(self) -> int:
        return int(self._last_created_trial_id_by_this_process)

    def study_of(self, log: Log) -> int | None:
        """The study that an operation changes; None where it creates one, or its trial is not known."""
        study_id: int | None = log.get("study_id", self._trial_id_to_study_id.get(log.get("trial_id", -1)))
        return study_id

    def memory(self, study_id: int) -> TrialMemory:
        if study_id not in self._memories:
            self.get_study(study_id)  # a KeyError where there is no such study
            self._memories[study_id] = TrialMemory(self._trials[each] for each in self._study_id_to_trial_ids[study_id])
        return self._memories[study_id]

    def apply_logs(self, logs: Iterable[Log], known: int = 0) -> None:
        """Apply operations, and count them.

        Args:
            known: of a journal that is read again, how many were read before: an operation of this process that is an
                error is refused again, but has been raised already.
        """
        for log in logs:
            self.log_number_read += 1
            try:
                self.apply(log)
            except _REFUSALS:
                if self.log_number_read > known:
                    raise

    def apply(self, log: Log) -> None:
        """Apply one operation, without counting it."""
        operation = self._operations.get(log["op_code"])
        if operation is None:
            raise InvalidInput(
                f"the journal holds an operation {log['op_code']!r}, which this release of Optuna does not know"
            )
        operation(log)

    def _apply_create_trial(self, log: Log) -> None:
        before = len(self._trials)
        log = {**log, "distributions": {}, "params": {}} if (parts := _parts(log)) else log
        super()._apply_create_trial(log)
        if len(self._trials) == before:
            return
        trial, study_id = self._trials[before], log["study_id"]
        for name, text, value in parts:
            distribution = self._distribution(text)
            self._known[study_id].setdefault(name, distribution)
            trial.distributions[name] = distribution
            trial.params[name] = distribution.to_external_repr(value)
        if study_id in self._memories:
            self._memories[study_id].add(trial)

    def _apply_set_trial_param(self, log: Log) -> None:
        if not self._trial_exists_and_updatable(log["trial_id"], log):
            return
        name, distribution = log["param_name"], self._distribution(log["distribution"])
        known = self._known[self._trial_id_to_study_id[log["trial_id"]]].setdefault(name, distribution)
        if known is not distribution:
            try:
                check_distribution_compatibility(known, distribution)
            except ValueError:
                if self._is_issued_by_this_worker(log):
                    raise
                return
        self._change(log["trial_id"], "params", name, distribution.to_external_repr(log["param_value_internal"]))
        self._change(log["trial_id"], "distributions", name, distribution)

    def _apply_set_trial_state_values(self, log: Log) -> None:
        super()._apply_set_trial_state_values(log)
        self._remember(log["trial_id"])

    def _apply_set_trial_intermediate_value(self, log: Log) -> None:
        if self._trial_exists_and_updatable(log["trial_id"], log):
            self._change(log["trial_id"], "intermediate_values", log["step"], log["intermediate_value"])

    def _apply_set_trial_user_attr(self, log: Log) -> None:
        if self._trial_exists_and_updatable(log["trial_id"], log):
            self._change(log["trial_id"], "user_attrs", *next(iter(log["user_attr"].items())))

    def _apply_set_trial_system_attr(self, log: Log) -> None:
        if self._trial_exists_and_updatable(log["trial_id"], log):
            self._change(log["trial_id"], "system_attrs", *next(iter(log["system_attr"].items())))

    def _change(self, trial_id: int, part: str, key: Any, value: Any) -> None:
        trial = self._trials[trial_id]
        content = getattr(trial, part)
        if self.given_out:
            self._trials[trial_id] = with_changes(trial, **{part: {**content, key: value}})
            self._remember(trial_id)
        else:
            content[key] = value

    def _remember(self, trial_id: int) -> None:
        memory = self._memories.get(self._trial_id_to_study_id.get(trial_id, -1))
        if memory is not None and memory[self._trials[trial_id].number] is not self._trials[trial_id]:
            memory.replace(self._trials[trial_id])

    def _distribution(self, text: str) -> BaseDistribution:
        if text not in self._parsed:
            self._parsed[text] = json_to_distribution(text)
        return self._parsed[text]


def _parts(log: Log) -> list[tuple[str, str, float]]:
    """Name, distribution and value of each parameter that a trial is created with."""
    return [(name, log["distributions"][name], value) for name, value in log.get("params", {}).items()]
