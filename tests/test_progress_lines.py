"""One line says how far a search or a long job is, whatever it does."""

import pytest

from evomerge.jobs import Progress
from evomerge.report.progress import progress_line
from evomerge.report.status_line import status_line
from evomerge.study.status import Status


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(key="toy/dam", step=3, steps=9, losses={"a": 0.5}), "toy/dam: step 3/9 · a 0.5000"),
        (Progress(key="toy/grams", step=3, steps=9, unit="text"), "toy/grams: text 3/9"),
        (Progress(key="toy/7", step=3, steps=9, unit="pass"), "toy/7: pass 3/9"),
    ],
)
def test_the_line_names_the_unit_of_the_work(progress, line):
    assert str(progress_line(progress)) == line


def test_a_slow_search_of_small_scores_is_not_shown_as_one_of_zeros():
    status = Status(
        state="running", finished=7, budget=100, failed=0, running=2, best=-3.2e-6, best_trial=3, trials_per_hour=0.4,
        seconds_left=None, run_seconds=6e4, workers={}, restarts=0, host="h", pid=1, updated=0.0, bar=("soup", 0.6),
        chance=0.9996,
    )  # fmt: skip
    line = status_line(status).plain
    assert line == "7/100 trials · best -3.2e-06 (trial 3) · 0.4 trials/h · may pass soup (above 99 %)"
