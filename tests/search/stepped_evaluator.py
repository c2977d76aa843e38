"""An evaluator that scores its items in ten blocks, notes each in a file, and has its process die in some of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

from evomerge.evaluation import Candidate, ItemBlock, Scores
from evomerge.evaluation.evaluator import ScoringStep
from evomerge.evaluation.synthetic import SyntheticEvaluator

BLOCKS = 10
LAST = 8  # the block in which it dies

PLUGIN = """[evomerge.evaluators]
stepped = stepped_evaluator:SteppedEvaluator
"""


class SteppedEvaluator(SyntheticEvaluator):
    """The synthetic one, in steps.

    Settings:
        folder: of the notes.
        kill: keys of the evaluations in whose eighth block the process gets a signal, once for each.
        signal: SIGKILL without it.
    """

    def __init__(self, settings: dict[str, Any], **given: Any) -> None:
        self._folder = Path(settings["folder"])
        self._kill = settings.get("kill", [])
        self._signal = settings.get("signal", int(signal.SIGKILL))
        own = ("folder", "kill", "signal")
        super().__init__({name: value for name, value in settings.items() if name not in own}, **given)

    def score_by_steps(
        self, candidate: Candidate, items: ItemBlock, state: bytes | None = None
    ) -> Generator[ScoringStep, None, Scores]:
        for block in range(int(state or 0) + 1, BLOCKS + 1):
            with (self._folder / "blocks").open("a") as notes:
                notes.write(f"{candidate.key} {block}\n")
            died = self._folder / candidate.key.replace("/", "-")
            if block == LAST and candidate.key in self._kill and not died.exists():
                died.touch()
                os.kill(os.getpid(), self._signal)
            yield ScoringStep(step=block, steps=BLOCKS, state=str(block).encode)
        return self.score(candidate, items)


def offer(folder: Path) -> Path:
    """A folder for the import path that offers the evaluator under the name `stepped`."""
    plugin = folder / "plugin" / "stepped-1.0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: stepped\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text(PLUGIN)
    return plugin.parent


def blocks_of(folder: Path) -> list[str]:
    """The key and number of every block that was scored, in order."""
    return (folder / "blocks").read_text().splitlines()
