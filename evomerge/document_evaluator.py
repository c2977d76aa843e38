"""A base class for evaluators of one's own: a subclass says what the documents are, and gives each of them a number."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.code_digest import code_digest
from evomerge.errors import InvalidInput
from evomerge.evaluation import Candidate, ItemBlock, Part, Scores, Split, TaskScores, check_split, make_split
from evomerge.evaluation.aggregates import standard_error
from evomerge.packs.pack import HashSplit

__all__ = ["DocumentEvaluator"]


class DocumentEvaluator(ABC):
    """Scores documents of one task or several, each by a number. It is an `Evaluator`, and keeps that contract where
    `outcomes` is a pure function of the candidate and each document by itself.

    The text of the subclass, see `code_digest`, its version and its settings are part of the fingerprint: a study
    refuses to go on with others.

    Attributes:
        settings: the keys that stand beside the evaluator's name in the spec.
        metric: its name in tables.
        higher_is_better: direction of the metric.
        shares: part -> share of the documents, by the hash of their content.
        fields: those that make an item, where documents have others, such as a number: documents that are equal in
            them are in one part. All without it.
        version: of whatever outside of the class decides an outcome; another text is another evaluator.
        neutral_settings: names of settings that change no outcome, such as an address.
    """

    metric: str = "score"
    higher_is_better: bool = True
    shares: Mapping[Part, float] = {"search": 0.5, "held_out": 0.5}
    fields: tuple[str, ...] | None = None
    version: str = ""
    neutral_settings: frozenset[str] = frozenset()

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        bounds: Mapping[str, tuple[float, float]],
        seed: int,
        split: Split | None = None,
    ) -> None:
        self.settings = dict(settings)
        self._seed = seed
        self._documents = {task: list(documents) for task, documents in self.documents().items()}
        rule = HashSplit(by="hash", shares=self.shares, fields=self.fields)
        if split is not None:
            check_split(split, self._documents, rule)
        self._split = split or make_split(self._documents, rule, seed)

    @abstractmethod
    def documents(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Task -> its documents, as plain data that JSON can hold. Called once, when `settings` is there."""

    @abstractmethod
    def outcomes(self, candidate: Candidate, task: str, documents: Sequence[Mapping[str, Any]]) -> Sequence[float]:
        """One number per document, in their order. Whatever it raises makes the candidate a failed trial."""

    @property
    def fingerprint(self) -> str:
        settings = {name: value for name, value in self.settings.items() if name not in self.neutral_settings}
        content = [code_digest(type(self)), self.version, settings, self._seed, self._split.digests]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def split(self) -> Split:
        return self._split

    @property
    def weights(self) -> Mapping[str, float]:
        """Task -> 1: all tasks count alike, unless the objective of the search says otherwise."""
        return dict.fromkeys(self._documents, 1.0)

    def score(self, candidate: Candidate, items: ItemBlock) -> Scores:
        started = time.perf_counter()
        tasks = {
            task: self._scored(candidate, task, ids) for task, ids in self._split.items(items).items() if len(ids) > 0
        }
        return Scores(tasks=tasks, seconds={"forward": time.perf_counter() - started})

    def _scored(self, candidate: Candidate, task: str, ids: tuple[int, ...]) -> TaskScores:
        found = self.outcomes(candidate, task, [self._documents[task][item] for item in ids])
        outcomes = tuple(map(float, found))
        if len(outcomes) != len(ids):
            raise InvalidInput(
                f"{type(self).__name__}.outcomes returned {len(outcomes)} numbers for {len(ids)} documents of task "
                f"{task!r}; return one for each"
            )
        value = sum(outcomes) / len(outcomes)
        return TaskScores(
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            items=ids,
            outcomes=outcomes,
            value=value,
            stderr=standard_error("mean", outcomes, None, value),
            aggregate="mean",
        )
