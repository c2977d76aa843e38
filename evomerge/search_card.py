"""The model card of a search's merge: its scores beside those of all rows, held-out results, data sets, licences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from evomerge.artefacts import CardFacts, model_card, models_card, parents_of
from evomerge.artefacts.card_data import HeldOutResult
from evomerge.artefacts.parents import judgement_of
from evomerge.checkpoints.location import is_hub_id
from evomerge.leaderboard import Line, leaderboard
from evomerge.opening.inputs import Inputs
from evomerge.packs.task_files import FILE_BUILDERS
from evomerge.recipe import Recipe, RecipeSet
from evomerge.study.stored_search import StoredSearch

_SCORES = "Scores of single tasks are on the held-out items where there are any, else on the search items."
_RESULTS = (
    "The results in the metadata are on held-out items alone, which no candidate of the search was scored on; they are "
    "a part of each task's items, so that they do not compare with published scores of that task."
)


@runtime_checkable
class _TaskEvaluator(Protocol):
    """An evaluator with tasks of lm-eval."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """Name -> task, whose `config` names its data set."""


class SearchCard:
    """Facts for the card of one row of a search.

    Args:
        label: of the row.
        mergekit, adapter: see `CardFacts`.

    Attributes:
        judgement: what the licences of the sources mean for the merge.
    """

    def __init__(
        self, stored: StoredSearch, inputs: Inputs, *, label: str, mergekit: bool = False, adapter: bool = False
    ) -> None:
        self._lines = leaderboard(stored)
        self._parents = parents_of((inputs.base, *inputs.experts))
        self.judgement = judgement_of(self._parents)
        self._evaluator = inputs.evaluator
        self._title = f"{stored.spec.name}: {label}"
        self._kind = {"mergekit": mergekit, "adapter": adapter}

    def of_model(self, recipe: Recipe, reproduce: str, *notes: str, sanity: str) -> str:
        """The card of one merge, with the finding of its sanity probe."""
        columns, rows, facts = self._scores(recipe)
        return model_card(
            recipe,
            self._parents,
            columns,
            rows,
            title=self._title,
            reproduce=reproduce,
            notes=(*notes, *_notes(facts)),
            facts=facts,
            sanity=sanity,
        )

    def of_models(
        self, recipes: RecipeSet, models: Sequence[Sequence[str]], reproduce: str, *notes: str, sanity: str
    ) -> str:
        """The card of a row that is several models.

        Args:
            models, sanity: see `models_card`.
        """
        columns, rows, facts = self._scores(recipes)
        return models_card(
            self._parents,
            models,
            columns,
            rows,
            title=self._title,
            reproduce=reproduce,
            notes=(*_notes(facts), *notes),
            facts=facts,
            sanity=sanity,
        )

    def _scores(self, row: Recipe | RecipeSet) -> tuple[tuple[str, ...], list[list[str]], CardFacts]:
        """Columns and rows of the leaderboard, and the facts of one row."""
        parts = [part for line in self._lines for part in (line.search, line.held_out) if part]
        tasks = sorted({task for part in parts for task in part.tasks})
        own = next((line for line in self._lines if line.recipe == row.digest and line.held_out), None)
        datasets = {dataset for task in tasks if (dataset := _dataset(self._evaluator, task)[0]) is not None}
        facts = CardFacts(results=tuple(_results(own, self._evaluator)), datasets=tuple(sorted(datasets)), **self._kind)
        return ("model", "search", "held-out", *tasks), [_row(line, tasks) for line in self._lines], facts


def _notes(facts: CardFacts) -> list[str]:
    return [_SCORES, *[_RESULTS] * bool(facts.results)]


def _results(line: Line | None, evaluator: object) -> Iterator[HeldOutResult]:
    """The results of a row on the held-out items; none where it was not scored on them."""
    if line is None or line.held_out is None:
        return
    for task, score in line.held_out.tasks.items():
        dataset, config, split = _dataset(evaluator, task)
        yield HeldOutResult(
            task=task,
            metric=score["metric"],
            value=score["value"],
            stderr=score["stderr"],
            items=score["items"],
            dataset=dataset,
            config=config,
            split=split,
        )


def _dataset(evaluator: object, task: str) -> tuple[str | None, str | None, str | None]:
    """Hub id, config and split of the data set of a task; nothing for files of the user's own."""
    tasks = evaluator.tasks if isinstance(evaluator, _TaskEvaluator) else {}
    config = getattr(tasks.get(task), "config", None)
    path = getattr(config, "dataset_path", None)
    if not isinstance(path, str) or path in FILE_BUILDERS or not is_hub_id(path):
        return None, None, None
    split = getattr(config, "test_split", None) or getattr(config, "validation_split", None)
    return path, getattr(config, "dataset_name", None), split


def _row(line: Line, tasks: list[str]) -> list[str]:
    part = line.held_out or line.search
    scores = [f"{part.tasks[task]['value']:.3f}" if part and task in part.tasks else "–" for task in tasks]
    return [line.name, *(f"{each.value:.3f}" if each else "–" for each in (line.search, line.held_out)), *scores]
