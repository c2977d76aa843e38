from optuna.trial import TrialState, create_trial

from evomerge.storage import attributes
from evomerge.study.tally import Tally


def trial(state, told, **attrs):
    values = [0.5] if state is TrialState.COMPLETE else None
    return create_trial(state=state, values=values, user_attrs={attributes.TELL: told, **attrs})


def test_the_next_result_has_the_number_of_those_that_samplers_learn_from():
    told = [
        trial(TrialState.COMPLETE, 0),
        trial(TrialState.PRUNED, 1),
        trial(TrialState.FAIL, 2, **{attributes.INFEASIBLE: 1.0}),
    ]
    assert Tally(told).told == 3


def test_a_failed_trial_is_no_result_though_an_earlier_attempt_was_about_to_be_told():
    assert Tally([trial(TrialState.FAIL, 0), trial(TrialState.COMPLETE, 0)]).told == 1
