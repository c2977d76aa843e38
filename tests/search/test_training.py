"""DAM as a job: on the toy models, in this process and on Ray, killed half-way, exported, with its curve."""

import json
import os
import signal

import optuna
import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.cluster import InlineExecutor
from evomerge.cluster.ray_executor import RayExecutor
from evomerge.errors import Interrupted, InvalidInput, MergeError
from evomerge.jobs import Outcome, Progress, Scored, Train, Trained
from evomerge.opening.inputs import open_inputs
from evomerge.search.run import Listener, run_baselines
from evomerge.spec import override
from evomerge.study.rows import read_records
from evomerge.training import DamSettings
from evomerge.training.dam_training import _Training
from evomerge.worker import Worker

EXPERTS = ("reverse", "sort")
STEPS = 12
DAM = {"name": "dam", "steps": STEPS, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 2}


@pytest.fixture
def spec(write_spec, pack):
    """Two experts of the toy models, lm-eval, a few steps of DAM."""

    def write(name="sim", **changes):
        path = write_spec(evaluator=str(pack), dtype="float32", name=name, baselines=[DAM], **changes)
        content = yaml.safe_load(path.read_text())
        for source in content["sources"][1:]:
            source["calibration"] = {"task": f"toy_{source['name']}", "items": 16}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dam_row(folder, name="sim", label="dam", last=False):
    storage = f"sqlite:///{folder}/runs/{name}/study.db"
    rows = read_records(optuna.load_study(study_name=f"{name}/baselines", storage=storage))
    return next(row for row in (reversed(rows) if last else rows) if row.label == label)


def coefficients(folder, row, name="sim"):
    return load_file(folder / "runs" / name / "artifacts" / "files" / f"{row.recipe.files['coefficients']}.safetensors")


def test_killed_half_way_it_goes_on_to_the_same_coefficients_and_the_same_curve(spec, tmp_path, one_thread):
    whole, halved = load_spec(spec("whole")), load_spec(spec("halved"))
    run_baselines(whole, ["dam"], ray="none")

    seen = []

    def kill(progress):
        seen.append(progress.step)
        if progress.step == STEPS // 2 + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_baselines(halved, ["dam"], ray="none", listener=Listener(on_progress=kill))
    checkpoints = list((tmp_path / "runs" / "halved" / "artifacts" / "training").iterdir())
    assert len(checkpoints) == 1
    run_baselines(halved, ["dam"], ray="none")

    first, second = dam_row(tmp_path, "whole"), dam_row(tmp_path, "halved")
    a, b = coefficients(tmp_path, first, "whole"), coefficients(tmp_path, second, "halved")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert first.trial.intermediate_values == second.trial.intermediate_values
    assert list(first.trial.intermediate_values) == list(range(1, STEPS + 1))
    assert first.losses == second.losses
    assert first.cost.gradient_tokens == second.cost.gradient_tokens > 0
    assert not list((tmp_path / "runs" / "halved" / "artifacts" / "training").iterdir())
    assert second.cost.seconds > 0


def test_a_search_killed_in_its_training_goes_on_with_the_training(spec, tmp_path):
    path = load_spec(spec())

    def kill(progress):
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_search(path, ray="none", listener=Listener(on_progress=kill))
    made = []
    step = _Training.step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Training, "step", lambda self: made.append(1) or step(self))
        run_search(path, ray="none")
    assert len(made) == STEPS - 6  # the last checkpoint was after six


def test_coefficients_that_are_lost_are_trained_again_and_lost_items_only_scored_again(spec, tmp_path):
    path = load_spec(spec())
    run_baselines(path, ["dam"], ray="none")
    row, artifacts = dam_row(tmp_path), tmp_path / "runs" / "sim" / "artifacts"
    for items in artifacts.iterdir():
        if items.is_file():
            items.unlink()
    run_baselines(path, ["dam"], ray="none")
    again = dam_row(tmp_path, last=True)
    assert again.trial.number > row.trial.number
    assert (again.digest, again.cost.gradient_tokens) == (row.digest, row.cost.gradient_tokens)
    assert not again.trial.intermediate_values  # not trained again
    (artifacts / "files" / f"{row.recipe.files['coefficients']}.safetensors").unlink()
    run_baselines(path, ["dam"], ray="none")
    assert dam_row(tmp_path, last=True).trial.intermediate_values
    assert (artifacts / "files" / f"{row.recipe.files['coefficients']}.safetensors").is_file()


def test_a_training_that_fails_is_left_out_with_its_reason_and_the_verdict_comes(spec, capsys, monkeypatch):
    path = spec()

    def fails(self):
        raise MergeError("planted failure")

    monkeypatch.setattr(_Training, "step", fails)
    assert run_command(["run", str(path), "--ray", "none", "--trials", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"]["sentence"]
    assert "planted failure" in document["left_out"]["dam"]
    monkeypatch.undo()
    monkeypatch.chdir(path.parent)
    assert run_command(["baseline", str(path), "--name", "dam", "--ray", "none", "--json"]) == 0  # asked for by name
    assert json.loads(capsys.readouterr().out)["left_out"] == {}


def test_the_loss_on_every_source_ends_below_that_of_the_uniform_soup(spec, tmp_path):
    run_baselines(load_spec(spec()), ["dam"], ray="none")
    losses = dam_row(tmp_path).losses
    assert set(losses) == set(EXPERTS)
    assert all(after < before for before, after in losses.values())


def test_it_is_exported_like_any_other_merge(spec, tmp_path, capsys):
    path = spec()
    run_search(load_spec(path), ray="none")
    assert run_command(["export", str(path), "--trial", "dam", "--out", "out", "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    row = dam_row(tmp_path)
    assert exported["recipe"] == row.digest
    assert (tmp_path / "out" / "recipe-files" / "coefficients.safetensors").is_file()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weights = coefficients(tmp_path, row)["model.layers.0.mlp.up_proj.weight"]
    toy = path.parent
    sources = yaml.safe_load(path.read_text())["sources"][1:]
    merged = sum(
        load_file(f"{toy / source['location']}/model.safetensors")["model.layers.0.mlp.up_proj.weight"] * column
        for source, column in zip(sources, weights, strict=True)
    )
    assert torch.allclose(model.model.layers[0].mlp.up_proj.weight, merged, atol=1e-6)


def test_the_leaderboard_shows_both_budgets(spec, capsys):
    path = spec()
    run_search(load_spec(path), ray="none")
    assert run_command(["leaderboard", str(path), "--json"]) == 0
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    dam, best = rows["dam"], next(row for row in rows.values() if row["kind"] == "best")
    assert dam["cost"]["gradient_tokens"] > 0 == best["cost"]["gradient_tokens"]
    assert best["cost"]["candidates"] == 6
    assert best["cost"]["forward_tokens"] > 0
    assert set(dam["losses"]) == set(EXPERTS)
    assert {"dam"} <= set(rows)


def test_what_it_will_read_is_known_beforehand(spec, tmp_path, capsys):
    path = spec()
    assert run_command(["check", str(path), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["cost"]["training"]["dam"]
    run_baselines(load_spec(path), ["dam"], ray="none")
    cost = dam_row(tmp_path).cost
    assert planned == {
        "steps": STEPS,
        "gradient_tokens": cost.gradient_tokens,
        "forward_tokens": cost.forward_tokens,
    }


def test_it_can_start_from_the_winner_of_the_search(spec, tmp_path):
    path = spec()
    with pytest.raises(InvalidInput, match="run the search first"):
        run_baselines(load_spec(path), ["dam-from-best"], ray="none")
    run_search(override(load_spec(path), trials=2), ray="none")
    run_baselines(load_spec(path), ["dam-from-best"], ray="none")
    row = dam_row(tmp_path, label="dam-from-best")
    assert row.recipe.rules[0].sources == (*EXPERTS, "base")  # task arithmetic is a sum with the base as one more


def train_job(inputs):
    from evomerge.baselines.baseline_plans import Ingredients

    experts = tuple(source.ref for source in inputs.experts)
    given = Ingredients(
        spec=inputs.spec,
        base=inputs.base.ref,
        experts=experts,
        catalogue=inputs.catalogue,
        objective=None,
        references={},
    )
    calibration = {expert.name: expert.calibration for expert in inputs.spec.experts}
    settings = DamSettings(steps=3, learning_rate=0.01).model_dump(mode="json")
    return Train(
        key="sim/baselines/dam/training", recipe=given.soup(experts), settings=settings, calibration=calibration
    )


def events_of(executor, job):
    executor.submit(job)
    events = []
    while not (events and isinstance(events[-1], Outcome)):
        event = executor.next_event(60.0)
        assert event is not None
        events.append(event)
    return events


def test_every_executor_tells_the_progress_of_a_training_and_then_its_outcome(spec, tmp_path, one_thread):
    inputs = open_inputs(load_spec(spec()))
    job, setup = train_job(inputs), inputs.setup()
    inline = events_of(InlineExecutor(Worker(setup, "inline")), job)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    pool = RayExecutor(setup, count=1, cpus=1, gpus=0, resources={}, timeout=600.0)
    try:
        remote = events_of(pool, job)
        assert [worker.state for worker in pool.workers()] == ["idle"]
    finally:
        pool.close()
        ray.shutdown()
    for events in (inline, remote):
        assert [event.step for event in events[:-1] if isinstance(event, Progress)] == [1, 2, 3]
        assert isinstance(events[-1].result, Trained)
    assert inline[-1].result == remote[-1].result
    assert [event.losses for event in inline[:-1]] == [event.losses for event in remote[:-1]]


def test_a_worker_scores_after_a_training_what_it_scored_before(spec):
    from evomerge.jobs import Score
    from evomerge.packs.items import ItemBlock

    inputs = open_inputs(load_spec(spec()))
    worker, job = Worker(inputs.setup(), "inline"), train_job(inputs)
    score = Score(key="soup", recipe=job.recipe, items=ItemBlock("search", 0, 20))
    before = worker.run(score).result
    assert isinstance(worker.run(job).result, Trained)
    after = worker.run(score).result
    assert isinstance(before, Scored)
    assert isinstance(after, Scored)
    assert before.scores.tasks == after.scores.tasks
