"""Checkpoints of long evaluations: what is known so far, among the artifacts until the result is stored.

A checkpoint is no score. Its name is a digest of all that the numbers depend on, so that whichever worker tries the
same candidate on the same items again, in this run or the next, continues behind it with the same bits. It only saves
time: one that cannot be written or read is missed by nobody.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from evomerge.clock import SYSTEM_CLOCK, Clock
from evomerge.errors import EvomergeError
from evomerge.evaluation.evaluator import Candidate, ContinuableEvaluator, ScoringStep
from evomerge.evaluation.scores import Scores
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.packs.items import ItemBlock

FOLDER: Final = "evaluations"  # among the artifacts
PACKAGES: Final = ("evomerge", "torch", "transformers", "lm_eval")  # whose other releases may round otherwise

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ContinuedScores:
    """Scores of an evaluation that may have been continued.

    Attributes:
        seconds: of the attempts before, as far as they were kept.
        checkpoint: of the evaluation, of no use once the result is stored; None where none was kept.
    """

    scores: Scores
    seconds: float = 0.0
    checkpoint: str | None = None


class EvaluationCheckpoints:
    """Keeps the evaluations of one worker while they run.

    Args:
        evaluator: of the worker.
        artifacts: folder of the study, without patience.
        seconds: between two checkpoints; a shorter evaluation has none.
        device: of the worker, as its setup names it.
        beside_weights: name -> digest of the files beside the base's weights, such as its chat template.
    """

    def __init__(
        self,
        evaluator: ContinuableEvaluator,
        artifacts: ArtifactFolder,
        *,
        seconds: float,
        device: str | None = None,
        beside_weights: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._evaluator = evaluator
        self._artifacts = artifacts
        self._seconds = seconds
        self._device = device
        self._beside_weights = dict(beside_weights or {})
        self._clock = clock
        self._fingerprint: str | None = None
        self._latest: str | None = None  # the checkpoint of the evaluation that runs

    def score(self, candidate: Candidate, items: ItemBlock) -> Generator[ScoringStep, None, ContinuedScores]:
        """Score a candidate, behind what is kept of an attempt before; yields the steps after which more was kept."""
        self._latest = None
        name = f"{FOLDER}/{self._key(candidate, items)}"
        before, state = self._read(name)
        self._latest = None if state is None else name
        started = kept = self._clock.monotonic()
        steps = self._evaluator.score_by_steps(candidate, items, state)
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return ContinuedScores(scores=end.value, seconds=before, checkpoint=self._latest)
            now = self._clock.monotonic()
            if now - kept >= self._seconds:
                self._keep(name, before + now - started, step.state())
                kept = self._clock.monotonic()
                yield step

    def discard(self) -> None:
        """Delete what is kept of the latest evaluation: its candidate has failed, and is not tried again."""
        if self._latest is not None:
            discard(self._artifacts, [self._latest])

    def _key(self, candidate: Candidate, items: ItemBlock) -> str:
        if self._fingerprint is None:
            self._fingerprint = str(getattr(self._evaluator, "fingerprint", ""))
        content = {
            "recipe": candidate.recipe.digest,
            "params": dict(candidate.params),
            "evaluator": self._fingerprint,
            "batch_size": getattr(self._evaluator, "batch_size", None),
            "items": asdict(items),
            "machine": _machine(self._device),
            "beside": self._beside_weights,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _read(self, name: str) -> tuple[float, bytes | None]:
        """Seconds and state of an attempt before; None where nothing is kept."""
        with suppress(OSError, ValueError, KeyError, TypeError, EvomergeError):
            path = self._artifacts.find(name)
            if path is not None:
                head, _, state = path.read_bytes().partition(b"\n")
                known: Mapping[str, Any] = json.loads(head)
                if known["digest"] == hashlib.sha256(state).hexdigest():
                    _log.info("the evaluation continues behind %.0f s of an attempt before", known["seconds"])
                    return float(known["seconds"]), state
        return 0.0, None

    def _keep(self, name: str, seconds: float, state: bytes) -> None:
        head = json.dumps({"seconds": round(seconds, 3), "digest": hashlib.sha256(state).hexdigest()})
        try:
            self._artifacts.keep(name, head.encode() + b"\n" + state)
        except (OSError, EvomergeError) as error:
            _log.warning("the evaluation has no checkpoint: %s", error)
        else:
            self._latest = name


def discard(artifacts: ArtifactFolder, names: Iterable[str]) -> None:
    """Delete checkpoints, as far as that is possible: what is left is found as an orphan."""
    for name in names:
        with suppress(OSError, EvomergeError):
            artifacts.delete(name)


@cache
def _machine(device: str | None) -> tuple[str, ...]:
    """The parts of a machine and its software on which the last bits of a score depend."""
    import torch

    found = [f"{name} {_version(name)}" for name in PACKAGES]
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        return (*found, torch.cuda.get_device_name())
    return (*found, platform.machine(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
