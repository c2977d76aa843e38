"""Baselines that are several models: each task of the evaluator is given to the model that belongs to it.

They know the task of every item, which a single merge does not, so that their rows are marked wherever they are shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evomerge.baselines.baseline_plans import BaselinePlan, Choice, Ingredients
from evomerge.baselines.info import EmrSettings
from evomerge.baselines.named_recipes import NamedRecipe, NamedResult
from evomerge.documents import validate
from evomerge.errors import unknown_name
from evomerge.evaluation.scores import Scores
from evomerge.jobs import Cost
from evomerge.objective import Objective
from evomerge.recipe import Recipe, RecipeSet
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.study.rows import NewRow


def emr(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """EMR-Merging (arXiv 2405.17461): for each task the reconstruction of the expert that belongs to it.

    Where every task's expert is stated, choosing costs nothing; else it costs the scores of the experts.
    """
    settings = _settings(baseline)
    yield []
    tasks, stated = experts_of_tasks(given, settings.tasks)
    names = [ref.name for ref in given.experts]
    recipes = {
        name: given.recipe("emr", {}, {"task": index, "rescaler": settings.rescaler})
        for index, name in enumerate(names)
        if name in tasks.values()
    }
    cost = Cost() if len(stated) == len(tasks) else given.reference_cost
    return Choice(RecipeSet(recipes=recipes, tasks=tasks, stated=stated), cost)


def check_tasks(baseline: BaselineSpec, spec: SearchSpec, tasks: Collection[str]) -> None:
    """Refuse a task that the evaluator does not have, or a model of it that is no expert.

    Args:
        tasks: of the evaluator.

    Raises:
        InvalidInput: one of these.
    """
    experts = [expert.name for expert in spec.experts]
    for task, expert in _settings(baseline).tasks.items():
        if task not in tasks:
            raise unknown_name(f"task of baseline {baseline.name!r}:", task, tasks)
        if expert not in experts:
            raise unknown_name(f"expert of task {task!r} in baseline {baseline.name!r}:", expert, experts)


def experts_of_tasks(given: Ingredients, named: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Task -> the expert that it belongs to, and the tasks for which the spec says so.

    Args:
        named: task -> expert, where the baseline's settings name it.
    """
    calibrations = {expert.name: expert.calibration for expert in given.spec.experts}
    experts = [ref.name for ref in given.experts]
    tasks: dict[str, str] = {}
    stated: list[str] = []
    for task in given.references[experts[0]].tasks:
        of_task = [name for name in experts if (text := calibrations[name]) is not None and text.task == task]
        said = [named[task]] if task in named else of_task
        tasks[task] = max(said or experts, key=lambda name: _goodness(given.references[name], task))
        if len(said) == 1:
            stated.append(task)
    return tasks, tuple(stated)


def named_recipes(label: str, recipe: Recipe | RecipeSet) -> list[NamedRecipe]:
    """The recipes that are scored for a row: its own, or those of its models as "emr/NAME"."""
    if isinstance(recipe, Recipe):
        return [NamedRecipe(label=label, recipe=recipe)]
    return [NamedRecipe(label=f"{label}/{name}", recipe=each) for name, each in recipe.recipes.items()]


def joined_row(label: str, recipe: RecipeSet, results: Sequence[NamedResult], objective: Objective) -> NewRow:
    """The row of several models. Its cost and seconds are those of scoring all of them once.

    Args:
        results: of `named_recipes`, in that order.
    """
    scores = joined_scores(recipe, dict(zip(recipe.recipes, (each.scores for each in results), strict=True)))
    return NewRow(
        label=label,
        recipe=recipe,
        scores=scores,
        value=objective.value(scores),
        stderr=objective.stderr(scores),
        companion=objective.companion(scores),
        seconds={phase: sum(each.seconds.get(phase, 0.0) for each in results) for phase in results[0].seconds},
        cost=sum((each.cost for each in results), Cost()),
    )


def joined_scores(recipe: RecipeSet, scores: Mapping[str, Scores]) -> Scores:
    """The scores of several models: of each task those of the model that belongs to it.

    Args:
        scores: name of the model -> its scores on all tasks.
    """
    return Scores(tasks={task: scores[name].tasks[task] for task, name in recipe.tasks.items()}, seconds={})


def _goodness(scores: Scores, task: str) -> float:
    score = scores.tasks[task]
    return score.value if score.higher_is_better else -score.value


def _settings(baseline: BaselineSpec) -> EmrSettings:
    return validate(EmrSettings, baseline.settings, f"baseline {baseline.name!r}")
