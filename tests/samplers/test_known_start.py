"""CMA-ES from a merge that is good already: short first steps, and nothing learned from known merges far away."""

import optuna
import pytest

from evomerge.samplers import build_sampler
from evomerge.testing.sampler_contract import box


def searched(first_step, trials):
    """A study that has scored the centre, a far corner with a better value, and proposals."""
    space = box(6)
    sampler = build_sampler("cma", {}, seed=1, space=space, workers=1, first_step=first_step)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    far = dict.fromkeys(space.distributions, 1.0)
    study.enqueue_trial(dict(space.centre))
    study.enqueue_trial(far)
    study.optimize(
        lambda trial: sum(trial.suggest_float(name, 0.0, 1.0) for name in space.distributions), n_trials=trials
    )
    sampler.mean(study)
    return study, sampler, space


def test_the_first_steps_are_a_share_of_the_usual_ones():
    def distance(first_step):
        study, _, space = searched(first_step, 5)
        return [trial.params[name] - space.centre[name] for trial in study.trials[2:] for name in space.distributions]

    assert distance(0.1) == pytest.approx([0.1 * each for each in distance(1.0)], abs=0.01)


def test_a_known_merge_far_away_is_learned_from_only_where_steps_are_long_enough_to_reach_it():
    assert 1 in searched(1.0, 4)[1].told
    near = searched(0.1, 4)[1].told
    assert near == (0, 2, 3)


def test_settings_of_the_spec_come_before_the_space():
    space = box(6)
    given = build_sampler("cma", {"sigma0": 0.3}, seed=1, space=space, workers=1, first_step=0.1)
    assert given._settings.sigma0 == 0.3


def test_a_search_begins_at_the_merge_that_it_is_given_and_so_does_a_new_sampler_of_the_study():
    space = box(6)
    begin = dict.fromkeys(space.distributions, 0.8)

    def sampler():
        return build_sampler("cma", {}, seed=1, space=space, workers=1, first_step=0.1, begin=begin)

    study = optuna.create_study(direction="maximize", sampler=sampler())
    study.enqueue_trial(begin)
    study.optimize(lambda trial: -sum(trial.suggest_float(name, 0.0, 1.0) for name in begin), n_trials=12)
    assert all(abs(value - 0.8) < 0.1 for trial in study.trials[:4] for value in trial.params.values())
    assert study.sampler.told == tuple(range(study.sampler.told[-1] + 1))
    running = study.ask(dict(space.distributions)).params
    study.sampler = sampler()
    study.tell(12, state=optuna.trial.TrialState.FAIL)
    resumed = study.sampler.sample_relative(study, study.trials[12], dict(space.distributions))
    assert resumed == running
