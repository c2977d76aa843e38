"""The note of a trial in Optuna Dashboard: recipe in words, scores with error bars, cost."""

import optuna
from optuna_dashboard import get_note

from evomerge import load_spec, run_search
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost
from evomerge.recipe import ModelRef, PathLayer, Recipe, Rule
from evomerge.storage import attributes
from evomerge.storage.attributes import read_document
from evomerge.trial_note import in_words, trial_note

BASE, CODE, MATHS = (ModelRef(name, f"/models/{name}") for name in ("base", "code", "maths"))


def rule(tensor, weights):
    parameters = {"weight": weights}
    return Rule(tensors=(tensor,), method="ties", sources=("code", "maths"), parameters=parameters, options={})


def test_a_recipe_in_words_has_methods_and_weights_of_every_source():
    recipe = Recipe(
        base=BASE, sources=(CODE, MATHS), rules=(rule("a", (0.1, 1.0)), rule("b", (0.3, 1.0))), dtype="float32"
    )
    assert in_words(recipe) == "ties of code 0.100 to 0.300 (mean 0.200), maths 1.000 in 2 groups of tensors"


def test_a_path_in_words_counts_the_layers_of_every_source():
    layers = (PathLayer("code", 0, 1.0), PathLayer("maths", 1, 1.0), PathLayer("code", 2, 0.9))
    recipe = Recipe(base=BASE, sources=(CODE, MATHS), rules=(), dtype="float32", layers=layers)
    assert in_words(recipe) == "A path of 3 layers: 2 of code and 1 of maths"


def test_every_trial_that_is_told_has_a_note_that_the_dashboard_reads(write_spec):
    study = run_search(load_spec(write_spec()), ray="none")
    for trial in study.trials:
        note = get_note(optuna.Trial(study, trial._trial_id))
        assert note.startswith("task_arithmetic of reverse ")
        for task, score in read_document(trial, attributes.SCORES)["tasks"].items():
            assert f"| {task} | {score['value']:.3f} | ± {score['stderr']:.3f} | {score['items']} |" in note
        assert f"Cost: {trial.user_attrs[attributes.COST]['items']:,} items" in note


def test_a_task_whose_lower_scores_are_better_is_marked_and_the_mark_explained():
    recipe = Recipe(base=BASE, sources=(), rules=(), dtype="float32")

    def note(higher_is_better):
        score = TaskScores(
            metric="word_perplexity", higher_is_better=higher_is_better, items=(0,), outcomes=(12.0,), value=12.0,
            stderr=None,
        )  # fmt: skip
        return trial_note(recipe, Scores({"wikitext": score}, seconds=1.0), Cost())

    assert "| wikitext ↓ | 12.000 |" in note(False)
    assert "↓: less is better" in note(False)
    assert "↓" not in note(True)
