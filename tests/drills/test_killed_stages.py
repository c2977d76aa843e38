"""SIGKILL in a search, a training and the comparison on held-out items: each goes on where it was."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from drill_rows import Row
from optuna.trial import FrozenTrial, TrialState
from servers import without_studies

from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.study.rows import read_records
from tests.drills.conftest import Drill

pytestmark = pytest.mark.drill

KILLS = 3
STORAGES = ("sqlite", "journal", "postgres", "mariadb", "redis")
DAM = {"name": "dam", "steps": 24, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 2}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a storage without a study of an earlier drill."""
    if request.param in ("sqlite", "journal"):
        return f"{request.param}:///{tmp_path}/study.{request.param}"
    return without_studies(request.getfixturevalue(request.param))


@pytest.mark.drill("controller killed three times at random instants of a search")
@pytest.mark.parametrize("place", STORAGES, indirect=True)
def test_a_search_that_is_killed_has_the_trials_of_one_that_is_not(
    place: str, make_drill: Callable[..., Drill], undisturbed: list[FrozenTrial]
) -> None:
    drill = make_drill(place)
    for kill in range(KILLS):
        with drill.running() as process:
            drill.wait_for(15 * kill + 5)
            time.sleep(random.uniform(0.0, 1.0))
            drill.kill(process)
    with drill.running() as process:
        said = drill.end_of(process)
    assert drill.row.exit_codes == [-9] * KILLS + [0], said
    drill.check_whole(undisturbed)


@pytest.mark.drill("controller killed three times while DAM trains")
@pytest.mark.parametrize("place", ["sqlite", "postgres"], indirect=True)
def test_a_training_that_is_killed_ends_with_the_coefficients_of_one_that_is_not(
    place: str, tmp_path: Path, make_drill: Callable[..., Drill], sources: list[dict[str, Any]], pack: Path
) -> None:
    trained = [{**each, "calibration": {"task": f"toy_{each['name']}", "items": 16}} for each in sources[1:]]
    changes = {
        "sources": [sources[0], *trained],
        "evaluator": str(pack),
        "dtype": "float32",
        "baselines": [DAM],
        "budget": {"trials": 3},
    }
    whole = make_drill(f"sqlite:///{tmp_path}/whole/study.db", folder="whole", **changes)
    whole.row = Row(cell="")  # nothing happens to it
    with whole.running() as process:
        said = whole.end_of(process)
    assert whole.row.exit_codes == [0], said

    killed = make_drill(place, folder="killed", **changes)
    reached = 0
    for _ in range(KILLS):
        with killed.running() as process:
            reached = next_checkpoint(killed, process, reached)
            killed.kill(process)
    with killed.running() as process:
        said = killed.end_of(process)
    assert killed.row.exit_codes == [-9] * KILLS + [0], said
    assert killed.count(3)[-1].number == 2
    assert (killed.row.lost, killed.row.doubled) == (0, 0)
    (wanted,), (found,) = ([row for row in baselines(each) if row.label == "dam"] for each in (whole, killed))
    assert found.recipe.files["coefficients"] == wanted.recipe.files["coefficients"]
    assert found.trial.intermediate_values == wanted.trial.intermediate_values


def next_checkpoint(drill: Drill, process: subprocess.Popen[bytes], reached: int) -> int:
    """Wait for a checkpoint that is newer than the one reached. Returns its time in nanoseconds."""
    while process.poll() is None:
        for file in (drill.artifacts / "training").rglob("*"):
            try:
                if (time_ := file.stat().st_mtime_ns) > reached:
                    return time_
            except FileNotFoundError:  # replaced meanwhile
                continue
        time.sleep(0.02)
    raise AssertionError(f"it ended before it could be killed: {drill.said}")


def baselines(drill: Drill) -> list[Any]:
    storage = open_storage(drill.url)
    try:
        return read_records(optuna.load_study(storage=storage, study_name="drill/baselines"))
    finally:
        release(storage)


@pytest.mark.drill("controller killed three times while held-out items are scored")
@pytest.mark.parametrize("place", STORAGES, indirect=True)
def test_a_comparison_that_is_killed_scores_each_row_once_and_is_one_look(
    place: str, make_drill: Callable[..., Drill]
) -> None:
    drill = make_drill(
        place,
        budget={"trials": 6},
        verdict={"best": 3},
        evaluator={"name": "synthetic", "items": 40, "delay_seconds": 1.0},
    )
    for rows in range(1, KILLS + 1):
        with drill.running() as process:
            drill.wait_for(rows, "drill/held-out")
            drill.kill(process)
    winner = study_attributes(drill)[attributes.WINNER]
    with drill.running() as process:
        said = drill.end_of(process)
    assert drill.row.exit_codes == [-9] * KILLS + [0], said
    assert {trial.state for trial in drill.count(6)} == {TrialState.COMPLETE}
    rows_ = drill.trials("drill/held-out")
    assert max(labels(rows_).values()) == 1
    assert len(labels(rows_)) >= 4  # three sources, and the winner
    assert (drill.row.lost, drill.row.doubled) == (0, 0)
    assert study_attributes(drill)[attributes.WINNER] == winner
    assert len(study_attributes(drill)[attributes.LOOKS]) == 1


def labels(rows: list[FrozenTrial]) -> Counter[str]:
    """Label -> number of rows that were scored."""
    return Counter(row.user_attrs[attributes.LABEL] for row in rows if row.state is TrialState.COMPLETE)


def study_attributes(drill: Drill) -> dict[str, Any]:
    storage = open_storage(drill.url)
    try:
        return optuna.load_study(storage=storage, study_name="drill").user_attrs
    finally:
        release(storage)
