"""The note of a trial in Optuna Dashboard: its recipe in words, scores by task with error bars, and the cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost
from evomerge.messages import LESS_IS_BETTER, counted, duration_of_one, in_thousands, listed, some, task_label
from evomerge.recipe import Recipe, Rule

_TASKS: Final = 20  # that a note has room for


def trial_note(recipe: Recipe, scores: Scores, cost: Cost) -> str:
    """The note in Markdown, of about as many characters whatever the number of tensors and tasks."""
    rows = [_row(task, score) for task, score in list(scores.tasks.items())[:_TASKS]]
    hidden = len(scores.tasks) - len(rows)
    return "\n".join(
        [
            f"{in_words(recipe)}.",
            "",
            "| task | score | standard error | items |",
            "|---|---|---|---|",
            *rows,
            *([f"\nand {hidden} more tasks"] if hidden > 0 else []),
            *([f"\n{LESS_IS_BETTER}"] if any(not score.higher_is_better for score in scores.tasks.values()) else []),
            "",
            f"Cost: {cost.items:,} items, {in_thousands(cost.forward_tokens)} tokens, "
            f"{duration_of_one(cost.seconds)} of a worker.",
        ]
    )


def _row(task: str, score: TaskScores) -> str:
    error = "–" if score.stderr is None else f"± {score.stderr:.3f}"
    return f"| {task_label(task, score.higher_is_better)} | {score.value:.3f} | {error} | {len(score.items)} |"


def in_words(recipe: Recipe) -> str:
    """A recipe in words: methods, and of each source the weight or its range over the groups of tensors."""
    if recipe.layers:
        taken = [layer.source for layer in recipe.layers]
        counts = [f"{taken.count(source)} of {source}" for source in dict.fromkeys(taken)]
        return f"A path of {counted(len(taken), 'layer')}: {listed(counts)}"
    methods = list(dict.fromkeys(rule.method for rule in recipe.rules))
    if not methods:
        return f"A copy of {recipe.base.name}"
    sources = list(dict.fromkeys(source for rule in recipe.rules for source in rule.sources))
    weights = [f"{source}{_range(_weights(recipe.rules, source))}" for source in sources]
    groups = "" if len(recipe.rules) == 1 else f" in {len(recipe.rules)} groups of tensors"
    return f"{listed(methods)} of {some(weights, 12)}{groups}"


def _weights(rules: Sequence[Rule], source: str) -> list[float]:
    found = []
    for rule in rules:
        given = rule.parameters.get("weight")
        if isinstance(given, tuple) and source in rule.sources:
            found.append(given[rule.sources.index(source)])
    return found


def _range(weights: Sequence[float]) -> str:
    if not weights:
        return ""
    low, high = min(weights), max(weights)
    if math.isclose(low, high, abs_tol=5e-4):
        return f" {low:.3f}"
    return f" {low:.3f} to {high:.3f} (mean {math.fsum(weights) / len(weights):.3f})"
