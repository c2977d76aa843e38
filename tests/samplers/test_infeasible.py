"""Proposals that were refused without being scored: the samplers learn that they are bad, and by how much."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from evomerge.samplers import build_sampler
from evomerge.samplers.base import in_tell_order
from evomerge.storage import attributes
from evomerge.testing.sampler_contract import Space

BITS = [f"bit{number}" for number in range(8)]
SPACE = Space({"x": FloatDistribution(0.0, 1.0), **{name: CategoricalDistribution(("0", "1")) for name in BITS}})
ALLOWED = 2


def search(name, trials, *, refuse):
    """The numbers of ones of the later proposals; those with more than are allowed are refused, or simply fail."""
    sampler = build_sampler(name, {}, seed=3, space=SPACE, workers=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"x": 0.5, **dict.fromkeys(BITS, "0")})
    for number in range(trials):
        trial = study.ask(dict(SPACE.distributions))
        ones = sum(trial.params[name] == "1" for name in BITS)
        trial.set_user_attr(attributes.TELL, number)
        if ones <= ALLOWED:
            study.tell(trial, 0.1 * ones)
            continue
        if refuse:
            trial.set_user_attr(attributes.INFEASIBLE, ones - ALLOWED)
        study.tell(trial, state=TrialState.FAIL)
    later = study.trials[-30:]
    return sum(sum(trial.params[name] == "1" for name in BITS) for trial in later) / len(later)


@pytest.mark.parametrize("name", ["catcma", "tpe"])
def test_a_sampler_goes_where_it_is_not_refused(name):
    learned, ignored = search(name, 120, refuse=True), search(name, 120, refuse=False)
    assert learned < 2.5
    assert learned < ignored - 0.5


def test_a_refused_proposal_has_its_place_in_the_order_of_telling_and_another_failure_has_none():
    study = optuna.create_study(direction="maximize")
    for told, excess in ((2, None), (1, 3.0), (0, None)):
        trial = study.ask()
        trial.set_user_attr(attributes.TELL, told)
        if excess is not None:
            trial.set_user_attr(attributes.INFEASIBLE, excess)
        study.tell(trial, None if excess else 1.0, state=TrialState.FAIL if excess else TrialState.COMPLETE)
    study.tell(study.ask(), state=TrialState.FAIL)
    assert [trial.number for trial in in_tell_order(study.trials)] == [2, 1, 0]
