"""One line says how far a long job is, whatever it does."""

import pytest

from evomerge.jobs import Progress
from evomerge.report.progress import progress_line


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
