"""Importance of experts and groups: told where it is so, and else said that it cannot be told."""

import json
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.importance import importances
from evomerge.importance.experts_and_groups import FEWEST, expert_and_group
from evomerge.importance.left_out import shares_of

EXPERTS, GROUPS = ("red", "green"), ("layers0-1", "layers2-3")
WEIGHT = FloatDistribution(0.0, 2.0)


def stored(values_of, trials, seed=0, **further):
    """A study of trials with random weights, and with methods where `further` has them."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(direction="maximize")
    names = [f"{group}.{expert}.weight" for group in GROUPS for expert in EXPERTS]
    for _ in range(trials):
        params = {name: float(rng.uniform(0, 2)) for name in names}
        params |= {name: str(rng.choice(kind.choices)) for name, kind in further.items()}
        value = values_of(params) + 0.02 * float(rng.standard_normal())
        kinds = dict.fromkeys(names, WEIGHT) | further
        study.add_trial(create_trial(params=params, distributions=kinds, value=value))
    space = SimpleNamespace(layers=None, method_names=("ties", "linear"))
    sources = tuple(SimpleNamespace(name=name) for name in ("base", *EXPERTS))
    return SimpleNamespace(study=study, spec=SimpleNamespace(search_space=space, sources=sources))


def answers(search):
    return {each.name: each.answer for each in importances(search)}


def only_red_in_the_first_layers(params):
    return 0.6 - (params["layers0-1.red.weight"] - 1.2) ** 2


def test_what_matters_is_told_with_an_interval_around_its_share():
    found = {each.name: each for each in importances(stored(only_red_in_the_first_layers, 60))}
    assert [(each.kind, each.name) for each in found.values()] == [
        ("source", "red"),
        ("source", "green"),
        ("group", "layers0-1"),
        ("group", "layers2-3"),
    ]
    assert {name for name, each in found.items() if each.answer == "matters"} == {"red", "layers0-1"}
    assert 0.3 < found["red"].low < found["red"].share < found["red"].high
    assert found["red"].share > 0.8
    assert [each.params for each in found.values()] == [2, 2, 2, 2]


def test_of_trials_that_differ_by_luck_alone_nothing_can_be_told():
    assert set(answers(stored(lambda params: 0.5, 60)).values()) == {"cannot be told"}


def test_weights_that_vary_together_cannot_be_told_apart():
    search = stored(only_red_in_the_first_layers, 60)
    trials = [
        create_trial(
            params={**trial.params, "layers2-3.green.weight": trial.params["layers0-1.red.weight"]},
            distributions=trial.distributions,
            value=trial.value,
        )
        for trial in search.study.trials
    ]
    search.study = optuna.create_study(direction="maximize")
    search.study.add_trials(trials)
    assert set(answers(search).values()) == {"cannot be told"}


@pytest.mark.parametrize("trials", [0, 1, FEWEST - 1])
def test_few_trials_tell_nothing(trials):
    found = importances(stored(only_red_in_the_first_layers, trials))
    assert {each.answer for each in found} <= {"cannot be told"}
    assert {each.share for each in found} <= {None}


def test_trials_of_equal_value_tell_nothing():
    search = stored(lambda params: 0.5, 30)
    equal = [
        create_trial(params=trial.params, distributions=trial.distributions, value=0.5) for trial in search.study.trials
    ]
    search.study = optuna.create_study(direction="maximize")
    search.study.add_trials(equal)
    assert {(each.share, each.answer) for each in importances(search)} == {(None, "cannot be told")}


def test_a_choice_of_methods_counts_for_its_group():
    choice = {f"{group}.method": CategoricalDistribution(("ties", "linear")) for group in GROUPS}
    search = stored(lambda params: float(params["layers2-3.method"] == "ties"), 60, **choice)
    assert {name for name, answer in answers(search).items() if answer == "matters"} == {"layers2-3"}


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("layers0-1.reverse.weight", ("reverse", "layers0-1")),
        ("layers0-1.attention.ties.reverse.density", ("reverse", "layers0-1.attention")),
        ("layers0-1.ties.density", (None, "layers0-1")),
        ("reverse.weight", ("reverse", None)),
        ("my.reverse.weight", ("my.reverse", None)),
        ("layers0-1.uniform-soup.weight", ("uniform-soup", "layers0-1")),
        ("lambda", (None, None)),
        ("layers0-1.method", (None, "layers0-1")),
    ],
)
def test_a_param_belongs_to_an_expert_and_a_group(param, expected):
    assert expert_and_group(param, ("base", "reverse", "my.reverse", "uniform-soup"), ("ties", "linear")) == expected


def test_at_most_one_in_twenty_studies_of_luck_names_anything():
    owners = [set(range(8)), set(range(8, 16)), set(range(0, 16, 2)), set(range(1, 16, 2))]
    named = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shares = shares_of(rng.random((FEWEST, 16)), rng.standard_normal(FEWEST), owners, alpha=0.05)
        named += any(each.low > 0 for each in shares)
    assert named <= 10


def test_the_command_shows_it_when_it_is_asked(write_spec, capsys, monkeypatch):
    path = write_spec(budget={"trials": 24}, sampler={"name": "random"}, baselines=[])
    run_search(load_spec(path), ray="none")
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    assert "importance" not in json.loads(capsys.readouterr().out)
    assert run_command(["leaderboard", str(path), "--importance", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["importance"]
    assert document["trials"] == 24
    assert [row["name"] for row in document["rows"] if row["kind"] == "source"] == ["reverse", "sort"]
    assert all(row["answer"] in ("matters", "cannot be told") for row in document["rows"])
    monkeypatch.setenv("COLUMNS", "100")
    assert run_command(["leaderboard", str(path), "--importance"]) == 0
    printed = capsys.readouterr().out
    assert "source reverse" in printed
    assert "differences between 24 trials" in printed
