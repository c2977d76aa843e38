"""Trainings of `learned` on the tiny models of `conftest`."""

from __future__ import annotations

from dataclasses import replace

from evomerge.evaluation.evaluator import CalibrationText
from evomerge.learned import LearnedSettings, train_learned

GRANULARITIES = ("global", "groups", "tensor", "column")


def settings_of(built, granularity="tensor", **given):
    if granularity == "groups":
        embeddings = [name for name in built.names if "embed" in name or "wte" in name]
        given["groups"] = {"embeddings": embeddings, "norms": [name for name in built.names if "norm" in name]}
    return LearnedSettings.model_validate({"granularity": granularity, "steps": 4, "batch_size": 2, **given})


def train(built, recipe=None, checkpoints=None, settings=None, **given):
    """Steps and result of a training from task arithmetic."""
    inputs = built.inputs(recipe or built.recipe("task_arithmetic", weight=0.3), checkpoints)
    training = train_learned(inputs, settings or settings_of(built, **given))
    steps = []
    while True:
        try:
            steps.append(next(training))
        except StopIteration as end:
            return steps, end.value


def with_options(built):
    """Texts of which every second one has two wrong options, of another length each."""
    texts = {
        name: [
            replace(
                text,
                others=(
                    CalibrationText((*text.tokens[: text.answer], 7), text.answer),
                    CalibrationText((*text.tokens[: text.answer], 9, 8, 3), text.answer),
                ),
            )
            if index % 2
            else text
            for index, text in enumerate(each)
        ]
        for name, each in built.texts.items()
    }
    return replace(built, texts=texts)
