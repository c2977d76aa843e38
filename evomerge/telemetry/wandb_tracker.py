"""Weights & Biases: one run for a search, with a row of its history for each trial. The one file that imports wandb."""

from __future__ import annotations

from typing import Final, Literal

from evomerge.telemetry.tracker import Conclusion, EndState, TrackedRun, TrialEntry

_INIT_SECONDS: Final = 30.0  # for a server that does not answer


class WandbTracker:
    """A `Tracker` on W&B.

    Args:
        project, entity: where the run is; None for the default entity of the key.
        mode: None for W&B's own choice.
    """

    def __init__(
        self,
        project: str = "evomerge",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        self._project = project
        self._entity = entity
        self._mode = mode

    def open(self, run: TrackedRun) -> None:
        """Begin the run of this id, or continue it."""
        import wandb

        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            mode=self._mode,
            id=run.id,
            name=run.study,
            config=dict(run.config),
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, init_timeout=_INIT_SECONDS),
        )

    def log(self, entry: TrialEntry) -> None:
        """One row: number, state, params under "params/", metrics under their names.

        Drawn over the order in which trials end: over their numbers, the best so far would fall where one ends late.
        """
        row = {"trial": entry.number, "state": entry.state, **entry.metrics}
        row |= {f"params/{name}": value for name, value in entry.params.items()}
        if entry.reason:
            row["reason"] = entry.reason
        self._run.log(row, step=entry.step)

    def conclude(self, finding: Conclusion) -> None:
        """The verdict as the notes of the run and in its summary, the leaderboard there as a table.

        None of it is a row of the history: its step would have to be above those of trials that are still to come.
        """
        import wandb

        self._run.notes = finding.note
        columns = list(finding.columns)
        self._run.summary.update(
            {
                "verdict": finding.headline,
                "belief": finding.belief,
                "leaderboard": wandb.Table(columns=columns, data=[list(row) for row in finding.rows]),
            }
        )

    def close(self, state: EndState) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)
