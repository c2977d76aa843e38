from evomerge.baselines.unlearned_skills import unlearned_skills
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.spec import SourceSpec


def source(name, task=None):
    calibration = {"task": task, "items": 4} if task is not None else None
    return SourceSpec.model_validate({"name": name, "location": name, "calibration": calibration})


def scores(*, higher_is_better=True, **values):
    return Scores(
        tasks={
            task: TaskScores(
                metric="acc",
                higher_is_better=higher_is_better,
                items=(0,),
                outcomes=(value,),
                value=value,
                stderr=None,
            )
            for task, value in values.items()
        },
        seconds={},
    )


SOURCES = [source("base"), source("sorts", "sort"), source("counts", "count")]


def test_an_expert_that_is_no_better_than_the_base_on_its_task_is_named_with_both_scores():
    found = {
        "base": scores(sort=0.1, count=0.0),
        "sorts": scores(sort=0.8, count=0.0),
        "counts": scores(sort=0.9, count=0.0),
    }
    [warning] = unlearned_skills(SOURCES, found)
    assert warning.startswith("source 'counts' scores 0.000 on count, the task of its calibration, and the base 0.000")


def test_where_less_is_better_the_expert_must_have_less():
    low, high = scores(sort=1.0, higher_is_better=False), scores(sort=2.0, higher_is_better=False)
    assert not list(unlearned_skills(SOURCES[:2], {"base": high, "sorts": low}))
    assert len(list(unlearned_skills(SOURCES[:2], {"base": low, "sorts": high}))) == 1


def test_experts_without_a_task_of_the_evaluator_are_not_judged():
    others = [source("base"), source("plain"), source("elsewhere", "unknown")]
    found = {"base": scores(sort=0.5), "plain": scores(sort=0.1), "elsewhere": scores(sort=0.1)}
    assert not list(unlearned_skills(others, found))
