"""Commands that read take the search from its study: what the file says by now is told, and changes nothing."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml

from evomerge.cli import run_command
from evomerge.spec import load_spec
from evomerge.storage import attributes
from evomerge.storage.attributes import read_text, write_text
from evomerge.storage.opening import open_storage, release
from evomerge.study.command_line import command_line
from evomerge.study.stored_search import read_search

ROOT = Path(__file__).parent.parent.parent
TOY = ROOT / "examples" / "toy" / "models"
BIN = Path(sys.executable).parent


@pytest.fixture
def ran(write_spec, capsys):
    """A spec that was run with another seed and a smaller budget than it has."""
    spec = write_spec()
    assert run_command(["run", str(spec), "--ray", "none", "--seed", "3", "--trials", "3"]) == 0
    capsys.readouterr()
    return spec


def succeeds(capsys, *arguments):
    """What a command prints on standard output, and on standard error."""
    assert run_command([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize(
    "command", [("status",), ("leaderboard",), ("leaderboard", "--json"), ("export", "--out", "out", "--json")]
)
def test_a_command_that_reads_goes_by_the_study_and_tells_in_one_line_how_the_file_differs(ran, capsys, command):
    out, err = succeeds(capsys, command[0], ran, *command[1:])
    assert err.splitlines() == [
        f"note: study 'sim' goes by its own spec, {ran} differs: budget.trials was 3, now 6; seed was 3, now 1"
    ]
    if "--json" in command:
        assert json.loads(out)["schema"] == 1


def test_nothing_is_told_where_the_file_says_what_the_study_has(write_spec, capsys):
    spec = write_spec()
    succeeds(capsys, "run", spec, "--ray", "none")
    assert succeeds(capsys, "status", spec)[1] == ""
    assert succeeds(capsys, "status", "--storage", "sqlite:///runs/sim/study.db", "--study", "sim")[1] == ""


def test_an_export_after_changes_of_the_file_is_what_was_scored(ran, write_spec, capsys):
    write_spec(dtype="float32", space="ties-per-block", seed=7, sampler="tpe")
    out, _ = succeeds(capsys, "export", ran, "--out", "out", "--json")
    assert json.loads(out)["verified"]


def _with_other_weights(device):
    """Change the digest of one tensor of the winner, and perhaps the device that it was scored on."""
    storage = open_storage("sqlite:///runs/sim/study.db")
    study = optuna.load_study(study_name="sim", storage=storage)
    digests = json.loads(read_text(study, attributes.DIGESTS))
    name = min(digests["tensors"])
    digests["tensors"][name] = "0" * 64
    scored, digests["device"] = digests["device"], device or digests["device"]
    write_text(study, attributes.DIGESTS, json.dumps(digests))
    release(storage)
    return name, scored


@pytest.mark.parametrize("device", ["cuda NVIDIA H200", "cpu"])  # the second: of earlier versions
def test_a_winner_that_another_device_scored_is_exported_and_what_differs_is_named(write_spec, capsys, device):
    spec = write_spec()
    succeeds(capsys, "run", spec, "--ray", "none")
    name, scored = _with_other_weights(device)
    document = json.loads(succeeds(capsys, "export", spec, "--out", "out", "--json")[0])
    assert (document["verified"], document["differs"]) == (False, [name])
    assert document["devices"] == {"scored": device, "exported": scored}
    told = " ".join(succeeds(capsys, "export", spec, "--out", "out")[0].split())
    assert f"such as {name}: scored on {device}, merged here on {scored}" in told


def test_a_winner_that_this_kind_of_device_scored_is_not_exported_with_other_weights(write_spec, capsys):
    spec = write_spec()
    succeeds(capsys, "run", spec, "--ray", "none")
    name, scored = _with_other_weights(None)
    assert len(scored.split()) > 1
    assert run_command(["export", str(spec), "--out", "out"]) == 2
    assert name in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("option", [[], ["--adapter"]])
def test_a_folder_that_is_no_export_is_refused_before_a_model_is_loaded(ran, capsys, monkeypatch, tmp_path, option):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    monkeypatch.setattr("evomerge.export.WeightBank", lambda *given, **named: pytest.fail("opened"))
    assert run_command(["export", str(ran), "--out", "mine", *option]) == 2
    assert "is not empty and not an earlier export" in " ".join(capsys.readouterr().err.split())


def test_run_still_refuses_what_baseline_takes_from_the_study(ran, capsys):
    assert run_command(["run", str(ran), "--ray", "none"]) == 4
    assert "seed was 3, now 1" in capsys.readouterr().err
    out, err = succeeds(capsys, "baseline", ran, "--name", "ties", "--ray", "none", "--json")
    assert "ties" in [row["label"] for row in json.loads(out)["rows"]]
    assert "seed was 3, now 1" in err
    assert load_stored(ran).seed == 3
    assert load_stored(ran).budget.trials == 3


def load_stored(spec):
    return read_search(load_spec(spec)).spec


def test_baseline_takes_the_settings_of_baselines_from_the_file(ran, write_spec, capsys):
    write_spec(baselines=["uniform-soup", {"name": "ties", "density": 0.4}])
    succeeds(capsys, "baseline", ran, "--name", "ties", "--ray", "none")
    (ties,) = [each for each in load_stored(ran).chosen_baselines if each.name == "ties"]
    assert ties.settings == {"density": 0.4}


def test_baseline_still_refuses_sources_whose_weights_have_changed(write_spec, tmp_path, capsys):
    shutil.copytree(TOY / "sort", tmp_path / "sort")
    sources = [{"name": name, "location": str(TOY / name)} for name in ("base", "reverse")]
    spec = write_spec(sources=[*sources, {"name": "sort", "location": "sort"}])
    succeeds(capsys, "run", spec, "--ray", "none", "--trials", "2")
    shutil.copy(TOY / "count" / "model.safetensors", tmp_path / "sort" / "model.safetensors")
    assert run_command(["baseline", str(spec), "--name", "ties", "--ray", "none"]) == 4


def test_a_source_that_is_gone_does_not_hide_the_study_and_one_that_moved_is_found(write_spec, tmp_path, capsys):
    for name in ("base", "reverse"):
        shutil.copytree(TOY / name, tmp_path / name)
    budget = {"trials": 2}
    spec = write_spec(sources=[{"name": name, "location": name} for name in ("base", "reverse")], budget=budget)
    succeeds(capsys, "run", spec, "--ray", "none")
    (tmp_path / "reverse").rename(tmp_path / "backwards")
    out, err = succeeds(capsys, "status", spec, "--json")
    assert json.loads(out)["trials"]["complete"] == 2
    assert len(err.splitlines()) == 1
    assert "reverse" in err
    moved = [{"name": "base", "location": "base"}, {"name": "reverse", "location": "backwards"}]
    write_spec(sources=moved, budget=budget)
    out, err = succeeds(capsys, "export", spec, "--out", "out", "--json")
    assert json.loads(out)["verified"]
    assert err == ""


def test_a_search_is_read_from_another_working_directory(write_spec, tmp_path, capsys, monkeypatch):
    spec = write_spec(artifacts="items")
    url = f"sqlite:///{tmp_path}/elsewhere/study.db"
    succeeds(capsys, "run", spec, "--ray", "none", "--trials", "2", "--seed", "3", "--storage", url)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert f"items: {tmp_path}/items" in succeeds(capsys, "leaderboard", spec, "--storage", url)[0]
    out, _ = succeeds(capsys, "export", spec, "--storage", url, "--out", "out", "--json")
    assert json.loads(out)["verified"]


def test_the_command_in_a_model_card_makes_the_same_model_from_anywhere(ran, tmp_path, capsys, monkeypatch):
    succeeds(capsys, "export", ran, "--out", "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    program, *words = shlex.split(card.partition("## How to reproduce it\n\n```\n")[2].partition("\n```")[0])
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert program == "evomerge"
    assert succeeds(capsys, *words)[1] == ""
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_a_message_that_suggests_a_command_suggests_one_that_works(ran, capsys, tmp_path):
    assert run_command(["export", str(ran), "--trial", "77", "--out", "out"]) == 2
    program, *words = shlex.split(capsys.readouterr().err.rpartition("`evomerge")[2].partition("`")[0])
    assert program == "leaderboard"
    assert "sim: objective" in succeeds(capsys, program, *words)[0]


def test_a_study_that_evomerge_did_not_make_is_refused(write_spec, capsys):
    import optuna

    (Path.cwd() / "runs" / "sim").mkdir(parents=True)
    optuna.create_study(study_name="sim", storage="sqlite:///runs/sim/study.db")
    assert run_command(["status", str(write_spec())]) == 2
    assert "not one of evomerge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///runs/x.db?timeout=9", "--storage 'sqlite:////here/runs/x.db?timeout=9' --study toy"),
        ("journal:///x.log", "--storage journal:////here/x.log --study toy"),
        ("x.journal", "--storage journal:////here/x.journal --study toy"),
        ("env:MY_FILE", "--storage sqlite:////here/y.db --study toy"),
        ("env:MY_SERVER", "--storage env:MY_SERVER --study toy"),
        ("redis://host:6379/0", "--storage env:EVOMERGE_STORAGE --study toy"),
        ("postgresql://me:secret@host/db", "--storage env:EVOMERGE_STORAGE --study toy"),
    ],
)
def test_a_printed_command_names_the_study_from_anywhere_and_without_a_password(monkeypatch, tmp_path, url, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_FILE", "sqlite:///y.db")
    monkeypatch.setenv("MY_SERVER", "postgresql://me:secret@host/db")
    spec = load_spec(ROOT / "examples" / "toy" / "search.yaml").model_copy(update={"storage": url})
    assert command_line(spec, "status") == f"evomerge status {words.replace('/here', str(tmp_path))}"


def test_a_password_in_a_file_stays_there(tmp_path):
    spec = load_spec(ROOT / "examples" / "toy" / "search.yaml")
    spec = spec.model_copy(update={"storage": "postgresql://me:secret@host/db"})
    assert command_line(spec, "status", file=tmp_path / "a.yaml") == f"evomerge status {tmp_path}/a.yaml"


def small_pack(folder, names=("toy_reverse", "toy_sort")):
    """Some of the toy tasks, with few search items of each."""
    shutil.copytree(ROOT / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text(encoding="utf-8"))
    content["tasks"] = [{**task, "limit": 24} for task in content["tasks"] if task["task"] in names]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(folder)


def shell(line, folder):
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_printed_lines_reproduce_every_row_from_another_directory_whatever_flags_the_run_had(
    write_spec, tmp_path, capsys
):
    spec = write_spec(evaluator=small_pack(tmp_path / "pack"), dtype="float32", artifacts="items", sampler="cma")
    url = "sqlite:///elsewhere/study.db"
    options = ["--storage", url, "--seed", "3", "--trials", "2", "--ray", "none", "--workers", "1"]
    shell(shlex.join(["evomerge", "run", str(spec), *options]), tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    printed = shell(shlex.join(["evomerge", "leaderboard", str(spec), "--storage", url, "--json"]), tmp_path)
    rows = {row["label"]: row for row in json.loads(printed)["rows"]}
    assert {row["kind"] for row in rows.values()} == {"source", "baseline", "best", "trial", "mean"}
    for row in rows.values():
        if row["prepare"]:
            shell(row["prepare"], there)
    for label in ("base", "mean of cma"):
        command = rows[label]["command"].replace("lm_eval run", f"lm_eval run --output_path {tmp_path / label[:4]}")
        shell(command, there)
        (results,) = (tmp_path / label[:4]).rglob("results*.json")
        values = json.loads(results.read_text(encoding="utf-8"))["results"]
        for task, score in rows[label]["held_out"]["tasks"].items():
            (value,) = [value for name, value in values[task].items() if name.startswith(f"{score['metric']},")]
            assert value == pytest.approx(score["value"], abs=1e-9)


def beyond_its_length(name, folder):
    """A toy model with dynamic NTK positions that begin to stretch at eight tokens."""
    shutil.copytree(TOY / name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config["max_position_embeddings"] = 8
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"name": name, "location": str(folder)}


def test_no_command_is_printed_that_would_print_other_scores(write_spec, tmp_path, capsys):
    pack = Path(small_pack(tmp_path / "pack", ["toy_count"]))
    content = yaml.safe_load((pack / "evaluator.yaml").read_text(encoding="utf-8"))
    (pack / "evaluator.yaml").write_text(yaml.safe_dump({**content, "max_length": 64}), encoding="utf-8")
    sources = [beyond_its_length(name, tmp_path / name) for name in ("base", "reverse", "sort")]
    spec = write_spec(evaluator=str(pack), sources=sources, dtype="float32", budget={"trials": 1}, baselines=[])
    succeeds(capsys, "run", spec, "--ray", "none")
    rows = json.loads(succeeds(capsys, "leaderboard", spec, "--json")[0])["rows"]
    assert {row["kind"] for row in rows} == {"source", "best", "mean"}
    for row in rows:
        assert row["command"] is row["prepare"] is None
        assert "depend on the order of the requests" in row["no_command"]
