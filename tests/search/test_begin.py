"""A search that begins at a baseline: its point first, short steps from there, the same after a kill, and its cost."""

import json
import multiprocessing
import sys
from pathlib import Path

import optuna
import pytest
import yaml

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.errors import InvalidInput, OtherSpec
from evomerge.opening.inputs import open_inputs
from evomerge.spaces.nearest import nearest_params
from evomerge.study.beginning import read_beginning
from evomerge.study.rows import read_records

LEARNED = {"name": "learned-groups", "steps": 4, "batch_size": 4, "stop_every": 2, "learning_rate": 0.1}
ITEMS = 40


@pytest.fixture
def spec(write_spec, pack):
    """Two experts of the toy models in six dimensions, lm-eval, few items to learn from."""

    def write(name="sim", begin="learned-groups", baselines=(LEARNED,), **changes):
        warm = {} if begin is None else {"warm_start": {"begin": begin}}
        given = {"evaluator": str(pack), "dtype": "float32", "name": name, "baselines": list(baselines), **warm}
        path = write_spec(f"{name}.yaml", **{**given, **changes})
        content = yaml.safe_load(path.read_text())
        for source in content["sources"][1:]:
            source["calibration"] = {"task": f"toy_{source['name']}", "items": 8}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def study_of(name):
    return optuna.load_study(study_name=name, storage=f"sqlite:///runs/{name.partition('/')[0]}/study.db")


def test_what_was_learned_is_the_first_trial_with_its_cost_and_proposals_stay_near_it(spec, capsys):
    path = spec(budget={"trials": 5})
    run_search(load_spec(path), ray="none")
    trials = study_of("sim").trials
    (row,) = [row for row in read_records(study_of("sim/baselines")) if row.label == "learned-groups"]
    space = open_inputs(load_spec(path)).space
    begun = trials[0].params
    assert begun == nearest_params(space, row.recipe)
    assert len(set(begun.values())) == len(begun)  # each group and expert has learned its own
    assert trials[1].params == space.centre
    ranges = {name: each.high - each.low for name, each in space.distributions.items()}
    steps = [abs(trial.params[name] - begun[name]) / ranges[name] for trial in trials[2:] for name in begun]
    assert 0 < sum(steps) / len(steps) < 0.1  # 0.16 from the centre with the usual first steps
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    best = next(row for row in rows.values() if row["kind"] == "best")
    assert rows["learned-groups"]["cost"]["gradient_tokens"] > 0
    assert best["forwards"] == pytest.approx(5 * ITEMS + rows["learned-groups"]["forwards"])


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killer", "evomerge.search.run", "evomerge.report.progress"])
    return context


def run(processes, path, point=None, trial=-1):
    process = processes.Process(target=killer.run, args=(["run", str(path), "--ray", "none"], point, trial))
    process.start()
    process.join(timeout=240)
    return process.exitcode


def test_killed_it_resumes_to_the_same_proposals(processes, write_spec):
    grid = {"name": "task-arithmetic", "weights": [0.3]}
    changes = {"baselines": [grid], "warm_start": {"begin": "task-arithmetic"}, "budget": {"trials": 8}}
    whole, killed = (write_spec(f"{name}.yaml", name=name, **changes) for name in ("whole", "killed"))
    assert run(processes, whole) == 0
    for point, trial in (("before the beginning is stored", -1), ("after submit", 0), ("between result and tell", 5)):
        assert run(processes, killed, point, trial) == -9
    assert run(processes, killed) == 0
    first, second = study_of("whole").trials, study_of("killed").trials
    assert len(first) == 8
    assert list(first[0].params.values()) == pytest.approx([0.3] * len(first[0].params))
    assert [trial.params for trial in first] == [trial.params for trial in second]
    assert [trial.value for trial in first] == [trial.value for trial in second]
    assert read_beginning(study_of("killed")).label == "task-arithmetic"


def test_the_beginning_may_not_change_and_its_settings_have_no_more_say(write_spec):
    def search(weight, trials, warm):
        baselines = [{"name": "task-arithmetic", "weights": [weight]}]
        run_search(load_spec(write_spec(baselines=baselines, warm_start=warm, budget={"trials": trials})), ray="none")

    search(0.3, 3, {"begin": "task-arithmetic"})
    begun = read_beginning(study_of("sim"))
    search(0.5, 4, {"begin": "task-arithmetic"})
    assert read_beginning(study_of("sim")) == begun
    with pytest.raises(OtherSpec, match="begin"):
        search(0.3, 5, {})


def test_a_search_without_a_beginning_does_not_mention_one(write_spec):
    stored = json.loads(load_spec(write_spec()).to_json())
    assert "begin" not in stored["warm_start"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"begin": "dam"}, "none of the search"),
        ({"begin": "learned-groupz"}, "none of the search"),
        ({"objective": {"aggregate": "pareto"}, "sampler": "nsgaii"}, "one objective"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused_at_once(spec, changes, words):
    with pytest.raises(InvalidInput, match=words):
        load_spec(spec(**changes))


def test_a_beginning_without_a_point_in_the_space_is_refused(spec):
    path = spec(space="ties-per-block", budget={"trials": 2})
    with pytest.raises(InvalidInput, match="has no place in search space"):
        run_search(load_spec(path), ray="none")
    assert not study_of("sim").trials
