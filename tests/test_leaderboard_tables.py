"""The leaderboard's tables on a terminal of 80 columns, whatever the tasks and rows are called."""

from io import StringIO

import pytest
from rich.console import Console, Group

from evomerge.leaderboard import Line, PartScore
from evomerge.report.tables import _detail

LONG = [
    "arc_challenge",
    "hellaswag",
    "truthfulqa_mc2",
    "gsm8k_cot_llama",
    "mmlu_professional",
    "ifeval",
    "humaneval_plus",
    "bbh_fewshot",
    "commonsense_qa",
    "musr",
    "a" * 40,
]


def printed(tasks, lower=()):
    scores = {
        task: {"value": 0.1 + number / 1000, "stderr": 0.01, "higher_is_better": task not in lower}
        for number, task in enumerate(tasks)
    }
    part = PartScore(0.5, 0.01, scores)
    rows = [("trial 1234", "best"), ("task-arithmetic-without-one-expert", "baseline")]
    lines = [
        Line(label=label, kind=kind, trial=None, recipe="x", search=part, held_out=part, seconds=1.0)
        for label, kind in rows
    ]
    out = StringIO()
    Console(file=out, width=80).print(Group(*_detail(lines)))
    return out.getvalue()


@pytest.mark.parametrize("count", [1, 3, 6, 11])
def test_scores_of_long_tasks_are_never_cut_and_every_row_is_named(count):
    text = printed(LONG[:count])
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for number in range(count):
        assert text.count(f"{0.1 + number / 1000:.3f}") == 2
    joined = "".join(text.split())
    assert joined.count("bestfound(trial") == joined.count("task-arithmetic") == text.count("every task")


def test_few_short_tasks_stay_in_one_table():
    text = printed(["toy_shift", "toy_reverse", "toy_sort", "toy_swap", "toy_count", "toy_pick"])
    assert text.count("every task, on the held-out items") == 1
    assert " of " not in text
    assert "reverse" in text


def test_a_task_whose_lower_scores_are_better_is_marked_and_the_mark_explained():
    text = printed(["arc_easy", "wikitext"], lower={"wikitext"})
    assert "wikitext ↓" in text
    assert "arc_easy ↓" not in text
    assert "↓: less is better" in text
    assert "↓" not in printed(["arc_easy", "wikitext"])
