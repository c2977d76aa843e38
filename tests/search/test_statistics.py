"""Searches of methods with statistics: measured once before the first trial, killed, continued, exported."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import ray
import torch
import yaml
from transformers import AutoModelForCausalLM

from evomerge import load_spec, run_search
from evomerge.checkpoints.recipe_files import load_tensors
from evomerge.cli import run_command
from evomerge.cluster import InlineExecutor, ray_executor
from evomerge.cluster.ray_executor import RayExecutor, WorkerActor
from evomerge.errors import Interrupted
from evomerge.jobs import Measured, Outcome, Progress, Score
from evomerge.loop.dispatcher import run_all
from evomerge.loop.stop import Stop
from evomerge.methods import resolve_parameters
from evomerge.opening.inputs import open_inputs
from evomerge.opening.measurements import planned_measurements
from evomerge.packs.items import ItemBlock
from evomerge.recipe import single_source
from evomerge.search.run import Listener
from evomerge.statistics import measurement
from evomerge.study.rows import read_records
from evomerge.study.study_statistics import read_statistics
from evomerge.worker import Worker

ROOT = Path(__file__).parent.parent.parent
EXPERTS = ("reverse", "sort")
TEXTS = 8


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """The toy skills with two tasks and few items."""
    folder = tmp_path_factory.mktemp("packs") / "two-skills"
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text())
    content["tasks"] = [task for task in content["tasks"] if task["task"].removeprefix("toy_") in EXPERTS]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**content, "name": "two-skills"}))
    for items in (folder / "items").iterdir():
        lines, left = [], {"calibration": TEXTS, "search": 12, "held_out": 12}
        for line in items.read_text().splitlines(keepends=True):
            part = json.loads(line)["part"]
            left[part] -= 1
            lines += [line] * (left[part] >= 0)
        items.write_text("".join(lines))
    return folder


@pytest.fixture
def spec(write_spec, pack):
    """Two experts of the toy models and lm-eval; the space is that of a method with statistics."""

    def write(space="regmean-global", name="sim", texts=TEXTS, without=(), **changes):
        given = {"budget": {"trials": 3}, "sampler": "random", **changes}
        path = write_spec(evaluator=str(pack), dtype="float32", name=name, space=space, **given)
        content = yaml.safe_load(path.read_text())
        for source in content["sources"][1:]:
            if source["name"] not in without:
                source["calibration"] = {"task": f"toy_{source['name']}", "items": texts}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def measured(monkeypatch):
    """The texts that are read while statistics are measured."""
    read = []

    def counting(add):
        def added(self, text, what):
            read.append(what)
            add(self, text, what)

        return added

    for sums in (measurement._GramsOfTexts, measurement._FisherOfTexts):
        monkeypatch.setattr(sums, "add_text", counting(sums.add_text))
    return read


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def study_of(name="sim"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///runs/{name.split('/')[0]}/study.db")


def trials_of(name="sim"):
    return [(trial.params, trial.value, trial.user_attrs["evomerge:recipe"]) for trial in study_of(name).trials]


@pytest.mark.parametrize(("space", "kind"), [("regmean-global", "grams"), ("fisher-global", "fisher")])
def test_a_search_is_run_exported_and_verified_through_the_command_line(spec, space, kind, measured, capsys, tmp_path):
    path = str(spec(space))
    assert run_command(["run", path, "--ray", "none", "--json"]) == 0
    assert len(measured) == TEXTS * len(EXPERTS)
    stored = read_statistics(study_of())
    assert set(stored.files) == {f"{kind}.{name}" for name in EXPERTS}
    assert stored.cost.forward_tokens + stored.cost.gradient_tokens > 0
    assert all(trial.state.is_finished() and trial.value is not None for trial in study_of().trials)
    capsys.readouterr()
    assert run_command(["export", path, "--out", "out", "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["verified"]
    names = {file.name for file in (tmp_path / "out" / "recipe-files").iterdir()}
    assert names == {f"{kind}.{name}.safetensors" for name in EXPERTS}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert run_command(["leaderboard", path, "--json"]) == 0
    rows = {row["kind"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    spent = {"fisher": "gradient_tokens", "grams": "forward_tokens"}[kind]
    assert rows["best"]["cost"][spent] > 0
    assert run_command(["run", path, "--ray", "none", "--trials", "4", "--json"]) == 0
    assert len(measured) == TEXTS * len(EXPERTS)  # not once more


DIES = """
import os, signal, sys
from evomerge.cli import run_command
from evomerge.statistics import measurement

stored, store = [], measurement._store

def dying(*given):
    store(*given)
    stored.append(1)
    if len(stored) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

measurement._store = dying
run_command(sys.argv[2:])
"""


@pytest.mark.parametrize("space", ["regmean-global", "fisher-global"])
def test_killed_while_it_measures_the_same_command_continues_to_the_same_trials(spec, space, measured, one_thread):
    whole, killed = (
        ["run", str(spec(space, name, file=f"{name}.yaml")), "--ray", "none"] for name in ("whole", "killed")
    )
    assert run_command(whole) == 0
    assert len(measured) == 2 * TEXTS
    before_the_kill = TEXTS - 1 + 5  # checkpoints: all of the first source, and five of the second
    died = subprocess.run([sys.executable, "-c", DIES, str(before_the_kill), *killed], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert read_statistics(study_of("killed")).files == {}
    assert run_command(killed) == 0
    assert len(measured) == 2 * TEXTS + TEXTS - 5
    assert read_statistics(study_of("killed")).files == read_statistics(study_of("whole")).files
    assert trials_of("killed") == trials_of("whole")
    assert not list(Path("runs/killed/artifacts/statistics").glob("*.safetensors"))


def test_a_clean_stop_keeps_what_was_measured(spec, measured):
    chosen = load_spec(spec())

    def stop(progress):
        if progress.step == 3 and progress.key == "sim/grams.sort":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_search(chosen, ray="none", listener=Listener(on_progress=stop))
    run_search(chosen, ray="none")
    assert len(measured) == 2 * TEXTS


def test_a_measurement_goes_on_on_another_machine_where_artifacts_are_on_a_store(
    spec, measured, bucket, tmp_path, monkeypatch
):
    chosen = load_spec(spec(artifacts=bucket.url))

    def stop(progress):
        if progress.step == 3 and progress.key == "sim/grams.sort":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_search(chosen, ray="none", listener=Listener(on_progress=stop))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    run_search(chosen, ray="none")
    assert len(measured) == 2 * TEXTS
    kept = {name for name in bucket.names() if name.startswith(("statistics/", "files/"))}
    assert {Path(name).suffix for name in kept if name.startswith("statistics/")} == {".json"}
    files = set(read_statistics(study_of("sim")).files.values())
    assert {Path(name).stem for name in kept if name.startswith("files/")} == files


def test_another_study_in_the_same_folder_measures_nothing(spec, measured, tmp_path):
    folder = str(tmp_path / "shared")
    run_search(load_spec(spec(name="first", artifacts=folder)), ray="none")
    before = len(measured)
    run_search(load_spec(spec(name="second", artifacts=folder)), ray="none")
    assert len(measured) == before
    first, second = read_statistics(study_of("first")), read_statistics(study_of("second"))
    assert first.files == second.files
    assert first.cost.forward_tokens == second.cost.forward_tokens > 0  # they were not for nothing


def test_a_search_starts_from_an_exported_recipe_without_the_statistics_of_that(spec, capsys, tmp_path):
    run_search(load_spec(spec(name="first")), ray="none")
    assert run_command(["export", str(spec(name="first")), "--out", "out", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["model"].removeprefix("trial ")
    shutil.rmtree(tmp_path / "out" / "recipe-files")
    warm = {"recipes": ["out/recipe.json"]}
    run_search(load_spec(spec(name="second", warm_start=warm, budget={"trials": 2})), ray="none")
    wanted = study_of("first").trials[int(best)].params
    started = [trial.params for trial in study_of("second").trials]
    assert any(params == pytest.approx(wanted) for params in started)


def test_baselines_with_statistics_are_made_on_request_and_exported(spec, measured, capsys):
    path = str(spec("task-arithmetic-per-block", baselines=["uniform-soup"]))
    assert run_command(["baseline", path, "--name", "regmean", "--name", "fisher", "--ray", "none"]) == 0
    assert len(measured) == 2 * len(EXPERTS) * TEXTS
    rows = {row.label: row for row in read_records(study_of("sim/baselines"))}
    for label, kind in (("regmean", "grams"), ("fisher", "fisher")):
        assert set(rows[label].recipe.files) == {f"{kind}.{name}" for name in EXPERTS}
        defaults = resolve_parameters(label, {}, len(EXPERTS))
        assert dict(rows[label].recipe.rules[0].parameters) == defaults
        assert rows[label].cost.forward_tokens + rows[label].cost.gradient_tokens > 0
    capsys.readouterr()
    assert run_command(["export", path, "--trial", "regmean", "--out", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == rows["regmean"].digest
    assert run_command(["baseline", path, "--name", "regmean", "--ray", "none"]) == 0
    assert len(measured) == 2 * len(EXPERTS) * TEXTS  # it is there


def test_a_baseline_names_the_experts_without_texts(spec, capsys, tmp_path):
    path = str(spec("linear-global", without=["reverse", "sort"], baselines=["fisher"]))
    assert run_command(["run", path, "--ray", "none"]) == 2
    assert "baseline 'fisher' needs fisher of every source" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_check_predicts_disk_and_memory(spec, capsys):
    path = str(spec(baselines=["fisher"]))
    assert run_command(["check", path, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    run_search(load_spec(path), ray="none")
    files = dict(read_statistics(study_of()).files)
    files |= next(row for row in read_records(study_of("sim/baselines")) if row.label == "fisher").recipe.files
    assert len(planned["statistics"]) == len(files) == 4
    for each in planned["statistics"]:
        digest = files[f"{each['kind']}.{each['source']}"]
        size = Path(f"runs/sim/artifacts/files/{digest}.safetensors").stat().st_size
        assert each["file_bytes"] == pytest.approx(size, rel=0.2)
        tensors, _ = load_tensors(Path("runs/sim/artifacts/files"), digest)
        assert each["file_bytes"] == pytest.approx(sum(tensor.nbytes for tensor in tensors.values()), rel=0.01)
    sizes = {each["kind"]: each["file_bytes"] for each in planned["statistics"]}
    assert planned["placement"]["sources"] - planned["cost"]["shared_bytes"] == 2 * sum(sizes.values())


def test_a_lost_file_is_measured_again_and_other_numbers_are_refused(spec, measured, capsys, monkeypatch):
    path = spec()
    run_search(load_spec(path), ray="none")
    files = Path("runs/sim/artifacts/files")
    lost = files / f"{read_statistics(study_of()).files['grams.sort']}.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    run_search(load_spec(path), ray="none")
    assert lost.read_bytes() == content
    lost.unlink()
    add = measurement._GramsOfTexts.add_text
    monkeypatch.setattr(measurement._GramsOfTexts, "add_text", lambda self, text, what: add(self, text.cut(5), what))
    assert run_command(["run", str(path), "--ray", "none"]) == 2
    assert "the numbers that are measured now differ; restore it" in capsys.readouterr().err


def test_a_source_without_calibration_is_named_before_anything_is_written(spec, capsys, tmp_path):
    path = str(spec(without=["sort"]))
    for command in (["check", path], ["run", path, "--ray", "none"]):
        assert run_command(command) == 2
        assert (
            "needs grams of every source, measured on text that it is good at, but sort name" in capsys.readouterr().err
        )
    assert not (tmp_path / "runs").exists()


def test_an_evaluator_without_texts_is_refused(spec, capsys, tmp_path):
    path = spec()
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "evaluator": {"name": "synthetic", "items": 40}}))
    assert run_command(["run", str(path), "--ray", "none"]) == 2
    assert "no calibration texts" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_other_calibration_texts_make_another_search(spec, capsys):
    run_search(load_spec(spec()), ray="none")
    assert run_command(["run", str(spec(texts=TEXTS - 1)), "--ray", "none"]) == 4
    assert "texts of statistics" in capsys.readouterr().err


def test_a_choice_of_methods_names_files_only_where_they_are_taken(spec, tmp_path):
    (tmp_path / "mixed.yaml").write_text(
        "name: mixed\ngroups: {depth: {blocks: 2}}\nmethods:\n"
        "  linear: {parameters: {weight: {log_ratio: 3}}}\n"
        "  regmean: {parameters: {weight: {log_ratio: 3}, scaling: {low: 0.1, high: 1.0}}}\n"
        "  fisher: {parameters: {weight: {log_ratio: 3}, floor: 0.0}}\n"
    )
    run_search(load_spec(spec("mixed.yaml", sampler="tpe", budget={"trials": 4})), ray="none")
    assert set(read_statistics(study_of()).files) == {
        f"{kind}.{name}" for kind in ("grams", "fisher") for name in EXPERTS
    }
    assert all(trial.value is not None for trial in study_of().trials)


def events_of(executor, job):
    executor.submit(job)
    events = []
    while not (events and isinstance(events[-1], Outcome)):
        event = executor.next_event(60.0)
        assert event is not None
        events.append(event)
    return events


def test_every_executor_tells_the_progress_of_a_measurement_and_then_its_outcome(spec, one_thread, tmp_path):
    setups = [open_inputs(load_spec(spec(artifacts=str(tmp_path / name)))) for name in ("inline", "remote")]
    job = planned_measurements(setups[0])[0].job("sim")
    worker = Worker(setups[0].setup(), "inline")
    recipe = single_source(setups[0].base.ref, setups[0].base.ref, setups[0].catalogue.names, "float32")
    score = Score(key="base", recipe=recipe, items=ItemBlock("search", 0, 4))
    before = worker.run(score).result
    inline = events_of(InlineExecutor(worker), job)
    assert worker.run(score).result.scores.tasks == before.scores.tasks
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    pool = RayExecutor(setups[1].setup(), count=1, cpus=1, gpus=0, resources={}, timeout=600.0)
    try:
        remote = events_of(pool, job)
    finally:
        pool.close()
        ray.shutdown()
    for events in (inline, remote):
        assert [event.step for event in events[:-1] if isinstance(event, Progress)] == list(range(1, TEXTS + 1))
        assert isinstance(events[-1].result, Measured)
    assert inline[-1].result == remote[-1].result


class DyingActor(WorkerActor):
    """Dies in the middle of the first attempt at a measurement."""

    def events(self, job):
        for event in super().events(job):
            yield event
            if job.attempt == 1 and isinstance(event, Progress) and event.step == TEXTS // 2:
                os._exit(1)


def test_a_worker_that_dies_while_it_measures_is_replaced_and_its_sums_are_continued(spec, one_thread, monkeypatch):
    inputs = open_inputs(load_spec(spec()))
    job = planned_measurements(inputs)[0].job("sim")
    expected = Worker(replace(inputs.setup(), artifacts="elsewhere"), "inline").run(job).result
    monkeypatch.setattr(ray_executor.ray_executor, "WorkerActor", DyingActor)
    steps = []
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    pool = RayExecutor(inputs.setup(), count=1, cpus=1, gpus=0, resources={}, timeout=600.0)
    try:
        ((_, outcome),) = run_all(pool, Stop(), [job], lambda progress: steps.append(progress.step))
    finally:
        pool.close()
        ray.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert outcome.attempt == 2
    assert outcome.result == expected
    continued = list(range(TEXTS // 2, TEXTS + 1))  # the sums of the dead worker, and the rest
    assert steps[-len(continued) :] == continued
