"""PCB, OPCM and OT fusion through the command line: killed, resumed, exported."""

import itertools
import json
import multiprocessing
import sys
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))

import killer

from evomerge import load_spec
from evomerge.cli import run_command
from evomerge.merging import merge_state_dicts
from evomerge.opening.inputs import open_inputs
from evomerge.recipe import Recipe
from evomerge.storage import attributes

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TOY = [{"name": name, "location": str(EXAMPLES / "toy/models" / name)} for name in ("base", "reverse", "sort", "shift")]
PAIR = [{"name": name, "location": str(EXAMPLES / "methods/models" / name)} for name in ("first", "second")]
TRIALS = 7


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killer", "evomerge.search.run", "alembic.command", "sqlalchemy.dialects.sqlite"])
    return context


def run(processes, spec, point=None, trial=-1):
    here = "sqlite:///runs/sim/study.db"  # of the command line: in the working directory
    arguments = ["run", str(spec), "--ray", "none", "--trials", str(TRIALS), "--storage", here]
    process = processes.Process(target=killer.run, args=(arguments, point, trial))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def finished(folder):
    study = optuna.load_study(study_name="sim", storage=f"sqlite:///{folder}/runs/sim/study.db")
    return [trial for trial in study.trials if not trial.user_attrs.get(attributes.INTERRUPTED)]


@pytest.mark.parametrize(
    ("space", "sources"), [("pcb-global", TOY), ("opcm", TOY), ("ot-fusion", PAIR)], ids=["pcb", "opcm", "ot_fusion"]
)
def test_a_search_that_is_killed_and_resumed_exports_what_it_scored(
    processes, write_spec, tmp_path, monkeypatch, capsys, space, sources
):
    spec = write_spec(space=space, sources=sources, baselines=[], dtype="float32")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert run(processes, spec) == 0
    monkeypatch.chdir(tmp_path)
    for point, trial in (("while scoring", 2), ("after tell", 5)):
        assert run(processes, spec, point, trial) == -9
    assert run(processes, spec) == 0

    whole, killed = finished(tmp_path / "whole"), finished(tmp_path)
    assert [trial.state for trial in killed] == [TrialState.COMPLETE] * TRIALS
    assert [trial.params for trial in killed] == [trial.params for trial in whole]
    assert [trial.value for trial in killed] == [trial.value for trial in whole]

    assert run_command(["export", str(spec), "--out", "best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]

    recipe = Recipe.from_json((tmp_path / "best" / "recipe.json").read_text())
    exported = load_file(tmp_path / "best" / "model.safetensors")
    for name, tensor in reference(recipe, sources).items():
        assert torch.equal(exported[name], tensor), name


def reference(recipe, sources):
    """The merge by the library, which knows no config: of a transformer that is aligned, what is no attention."""
    rules, method = recipe.rules, recipe.rules[0].method
    models = {
        source["name"]: {
            name: tensor.float() for name, tensor in load_file(Path(source["location"]) / "model.safetensors").items()
        }
        for source in sources
    }
    arrived, base = [models[name] for name in rules[0].sources], models[recipe.base.name]
    merged = {}
    for rule in rules:
        whole = merge_state_dicts(method, arrived, None if method == "ot_fusion" else base, rule.parameters)
        merged |= {name: whole[name] for name in rule.tensors}
    return {name: tensor for name, tensor in merged.items() if method != "ot_fusion" or "self_attn" not in name}


def test_a_search_proposes_several_orders_of_arrival(write_spec):
    space = open_inputs(load_spec(write_spec(space="opcm", sources=TOY))).space
    keys = [name for name in space.distributions if name.endswith(".order")]
    points = [dict(zip(keys, values, strict=True)) for values in itertools.product((-1.0, -0.5, 0.5, 1.0), repeat=2)]
    orders = {space.decode({**space.centre, **point}).rules[0].sources for point in points}
    assert orders == set(itertools.permutations(["reverse", "sort", "shift"]))


def test_check_says_how_many_units_move_and_that_fine_tunes_of_one_base_are_in_order(write_spec, capsys):
    for sources in (PAIR, TOY[:2]):
        spec = write_spec(space="ot-fusion", sources=sources, baselines=[])
        assert run_command(["check", str(spec)]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "ot_fusion moves units: attention " in line]
        assert len(lines) == 1
        assert lines[0].endswith(": identity") == (sources is not PAIR)
        assert run_command(["check", str(spec), "--json"]) == 0
        moved = json.loads(capsys.readouterr().out)["alignment"]["moved"]
        assert moved.keys() == {"attention", "mlp"}
        assert all((count > 0) == (sources is PAIR) for count, units in moved.values())
    spec = write_spec(space="opcm", sources=TOY, baselines=[])
    assert run_command(["check", str(spec), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alignment"] is None
