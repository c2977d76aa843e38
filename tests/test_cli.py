"""The command line: one clear line and exit code 2 for bad input, one JSON document with --json."""

import ast
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli import app, run_command
from evomerge.spaces import known_spaces
from evomerge.storage.opening import ALLOWED

TOY = Path(__file__).parent.parent / "examples" / "toy" / "models"


def fails(capsys, *arguments):
    """The one line that a command prints when it refuses its input."""
    assert run_command([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    return lines[0]


def prints(capsys, *arguments):
    """The one JSON document that a command prints."""
    assert run_command([str(argument) for argument in arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    return document


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": "ties-per-blok"}, "did you mean 'ties-per-block'"),
        ({"evaluator": "toy-skils"}, "did you mean 'toy-skills'"),
        ({"evaluator": {"name": "synthetic", "itmes": 40}}, "did you mean 'items'"),
        ({"sampler": "cmaes"}, "did you mean 'cma'"),
        ({"baselines": ["uniform-sup"]}, "did you mean 'uniform-soup'"),
        ({"baselines": [{"name": "ties", "densty": 0.1}]}, "did you mean 'density'"),
        ({"baselines": ["dam"]}, "name no calibration"),
        ({"sampler": {"name": "cma", "sigma0": math.inf}}, "not finite"),
        ({"verdict": {"bests": 3}}, "did you mean 'best'"),
        ({"sampler": {"name": "cma", "sigma": 0.2}}, "did you mean 'sigma0'"),
        ({"sampler": {"name": "cma", "sigma0": -1}}, "sigma0"),
        ({"space": "mixed-methods"}, "tpe"),
        ({"budget": {"trials": -5}}, "budget.trials: Input should be greater than 0 (given: -5)"),
        ({"budget": {"hours": 0}}, "budget.hours"),
        ({"buget": {"trials": 5}}, "key 'buget' does not exist; did you mean 'budget'"),
        ({"workers": {"cuont": 2}}, "did you mean 'count'"),
        ({"baselines": ["uniform-soop"]}, "did you mean 'uniform-soup'"),
        ({"objective": {"weights": {"task_7": 1.0}}}, "did you mean 'task_1' or 'task_0'"),
        ({"objective": {"aggregate": "mean"}}, "objective.aggregate"),
        ({"dtype": "float64"}, "dtype"),
        ({"seed": -1}, "seed"),
        ({"allow": ["pickles"]}, "allow.0"),
        ({"sources": [{"name": "base", "location": str(TOY / "base")}]}, "sources"),
        ({"storage": "sqlit:///x.db"}, "sqlite"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, write_spec, changes, says):
    assert says in fails(capsys, "run", write_spec(**changes), "--ray", "none")


def sources(tmp_path, change):
    """The toy base and two experts, the second of which is a copy that `change` was applied to."""
    odd = tmp_path / "odd"
    shutil.copytree(TOY / "sort", odd)
    change(odd)
    return [
        {"name": "base", "location": str(TOY / "base")},
        {"name": "shift", "location": str(TOY / "shift")},
        {"name": "odd", "location": str(odd)},
    ]


def resize_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def only_pickles(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shutil.rmtree, "odd"),
        (resize_a_tensor, "model.layers.0.mlp.up_proj.weight"),
        (only_pickles, "pickle_weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    ],
)
def test_n23_a_source_that_does_not_fit_is_named(capsys, write_spec, tmp_path, change, says):
    line = fails(capsys, "check", write_spec(sources=sources(tmp_path, change)))
    assert "odd" in line
    assert says in line


def test_malformed_yaml_names_the_line(capsys, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("name: toy\nsources: [unclosed\n", encoding="utf-8")
    assert "line" in fails(capsys, "run", path)


UNICODE = ("utf-8-sig", "utf-16", "utf-16-le with a mark", "utf-16-be with a mark")


def saved_as(path, encoding):
    """A text file as another editor would have saved it."""
    name, _, mark = encoding.partition(" with ")
    path.write_bytes((("\ufeff" if mark else "") + path.read_text(encoding="utf-8")).encode(name))


@pytest.mark.parametrize("encoding", UNICODE)
def test_yaml_in_another_form_of_unicode_is_read(capsys, write_spec, tmp_path, encoding):
    shutil.copy(TOY.parents[2] / "search_spaces" / "ties-per-block.yaml", tmp_path / "mine.yaml")
    folder = pack(tmp_path, lambda content: None)
    spec = write_spec(space="mine.yaml", evaluator=folder)
    files = [spec, tmp_path / "mine.yaml", *(tmp_path / "pack").rglob("*.yaml")]
    for file in files:
        saved_as(file, encoding)
    assert len(files) > 8
    assert prints(capsys, "check", spec, "--json")["evaluator"]["items"]["search"]


def in_latin_1(path):
    path.write_bytes(path.read_bytes() + "\n# déjà vu\n".encode("iso8859-1"))
    return path


@pytest.mark.parametrize("name", ["search.yaml", "mine.yaml", "pack/evaluator.yaml", "pack/tasks/toy_count.yaml"])
def test_yaml_that_is_not_unicode_is_named_with_what_to_do(capsys, write_spec, tmp_path, name):
    shutil.copy(TOY.parents[2] / "search_spaces" / "ties-per-block.yaml", tmp_path / "mine.yaml")
    spec = write_spec(space="mine.yaml", evaluator=pack(tmp_path, lambda content: None))
    in_latin_1(tmp_path / name)
    for command in (["check"], ["run", "--ray", "none"]):
        line = fails(capsys, *command, spec)
        assert name in line
        assert "save it as UTF-8" in line


def test_other_texts_that_are_not_unicode_are_named_too(capsys, write_spec, tmp_path):
    (tmp_path / "recipe.json").write_bytes('{"é": 1}'.encode("iso8859-1"))
    spec = write_spec(warm_start={"recipes": ["recipe.json"]})
    line = fails(capsys, "run", spec, "--ray", "none")
    assert "recipe.json" in line
    assert "save it as UTF-8" in line


@pytest.mark.parametrize("error", [RuntimeError("no port is free"), OSError("no space"), AssertionError("odd")])
def test_a_ray_that_cannot_be_started_is_no_bug_of_ours(capsys, write_spec, monkeypatch, error):
    def start(**options):
        raise error

    monkeypatch.setattr("ray.init", start)
    line = fails(capsys, "run", write_spec(), "--ray", "local")
    assert str(error) in line
    assert "--ray none" in line
    assert "no Ray cluster answers" in fails(capsys, "run", write_spec(name="b"), "--ray", "host:6379")


def test_a_missing_spec_and_an_unknown_command_are_said(capsys, tmp_path):
    assert "does not exist" in fails(capsys, "run", tmp_path / "nothing.yaml")
    assert "No such command" in fails(capsys, "runn")
    assert "SPEC" in fails(capsys, "status")


def pack(tmp_path, change):
    """A copy of the toy pack, changed."""
    folder = tmp_path / "pack"
    shutil.copytree(TOY.parents[2] / "evaluators" / "toy-skills", folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text())
    change(content)
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(content))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content["tasks"][0].update(task="toy_shft"), "did you mean 'toy_shift'"),
        (lambda content: content["tasks"][0].update(metric="exact_mach"), "did you mean 'exact_match'"),
        (lambda content: content.update(split={"by": "field", "field": "prt"}), "prt"),
    ],
)
def test_a_pack_that_names_what_does_not_exist_is_refused(capsys, write_spec, tmp_path, change, says):
    assert says in fails(capsys, "check", write_spec(evaluator=pack(tmp_path, change)))


def test_a_directory_that_is_not_ours_is_not_overwritten(capsys, write_spec, tmp_path):
    spec = write_spec()
    assert run_command(["run", str(spec), "--ray", "none", "--trials", "2"]) == 0
    capsys.readouterr()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("words")
    assert "precious" in fails(capsys, "export", spec, "--out", tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "words"


def test_what_cannot_be_written_is_no_bug_of_ours(capsys, write_spec, tmp_path):
    path = write_spec(budget={"trials": 1}, baselines=[])
    assert run_command(["run", str(path), "--ray", "none"]) == 0
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    merge = tmp_path / "merge.yml"
    merge.write_text(
        f"merge_method: linear\ndtype: float32\nmodels: [{{model: {TOY / 'sort'}, parameters: {{weight: 1}}}}]"
    )
    within, folder, lengthy = tmp_path / "file" / "in" / "it", tmp_path / "runs", tmp_path / ("a" * 300)
    commands = {
        ("report", path): (within, folder, lengthy, "", "."),
        ("import", "mergekit", merge): (within, folder, lengthy, ""),
        ("merge", merge): (within, lengthy),
        ("export", path): (within, lengthy),
        ("init", "--example", "toy"): (within, lengthy),
    }
    for command, places in commands.items():
        for place in places:
            said = fails(capsys, *command, "--out", place)
            assert "cannot be written: " in said
            assert said.endswith("; give another --out")
    assert "file is a file, not a folder; give another --png" in fails(capsys, "report", path, f"--png={within}")
    assert not list(tmp_path.rglob("*.writing-*"))


def test_a_digit_that_is_no_decimal_names_no_trial(capsys, write_spec, tmp_path):
    path = write_spec(budget={"trials": 1}, baselines=[])
    assert run_command(["run", str(path), "--ray", "none"]) == 0
    capsys.readouterr()
    assert "unknown trial or baseline '²'" in fails(capsys, "export", path, "--trial", "²", "--out", tmp_path / "out")


def test_n7_before_the_first_result_nothing_is_best(capsys, write_spec, tmp_path):
    spec = write_spec()
    assert "evomerge run" in fails(capsys, "leaderboard", spec)
    assert "evomerge run" in fails(capsys, "export", spec, "--out", tmp_path / "out")
    assert "evomerge run" in fails(capsys, "status", spec)


def test_every_command_prints_one_json_document(capsys, write_spec, tmp_path):
    spec = write_spec()
    checked = prints(capsys, "check", spec, "--json")
    assert checked["space"]["dimensions"] == 6
    assert any("trials are few" in warning for warning in checked["warnings"])
    few = "41 held-out items can tell only a lead of 15 points or more over 1 baseline; plan 100"
    assert few in checked["warnings"]
    assert any(warning.startswith("task 'task_0' has ") for warning in checked["warnings"])
    ran = prints(capsys, "run", spec, "--ray", "none", "--trials", "3", "--json")
    assert {row["kind"] for row in ran["rows"]} == {"source", "baseline", "best", "trial", "mean"}
    status = prints(capsys, "status", spec, "--json")
    assert status["trials"]["complete"] == 3
    assert status["status"]["state"] == "finished"
    board = prints(capsys, "leaderboard", spec, "--json")
    assert board["winner"]["trial"] == next(row["trial"] for row in board["rows"] if row["kind"] == "best")
    exported = prints(capsys, "export", spec, "--out", tmp_path / "out", "--json")
    assert exported["verified"]
    assert len(prints(capsys, "spaces", "--json")["spaces"]) == len(known_spaces())
    assert prints(capsys, "spaces", "ties-smooth", "--json")["spaces"][0]["groups"]["depth"]["smooth"] == 3
    assert [each["name"] for each in prints(capsys, "evaluators", "--json")["evaluators"]] == [
        "toy-skills",
        "synthetic",
    ]
    assert prints(capsys, "methods", "ties", "--json")["methods"][0]["paper"].endswith("2306.01708")


@pytest.mark.parametrize(
    ("storage", "missing", "says"),
    [
        ("nothing://host/db", None, "unknown storage"),
        ("postgresql+psycopg://user:s3cret@host/db", "psycopg", "pip install 'evomerge[postgres]'"),
        ("redis://:s3cret@host/0", "redis", "pip install 'evomerge[redis]'"),
    ],
)
def test_check_refuses_a_storage_that_cannot_be_opened(capsys, monkeypatch, write_spec, storage, missing, says):
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    assert run_command(["check", str(write_spec()), "--storage", storage]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "s3cret" not in error


def test_a_study_is_found_by_storage_and_name_alone(capsys, write_spec, tmp_path):
    url = f"sqlite:///{tmp_path}/elsewhere/study.db"
    assert run_command(["run", str(write_spec()), "--ray", "none", "--trials", "2", "--storage", url]) == 0
    capsys.readouterr()
    assert prints(capsys, "status", "--storage", url, "--study", "sim", "--json")["trials"]["complete"] == 2
    assert prints(capsys, "run", "--storage", url, "--study", "sim", "--ray", "none", "--trials", "3", "--json")["rows"]
    assert "no study" in fails(capsys, "status", "--storage", url, "--study", "other")


@pytest.mark.parametrize("command", ["spaces", "evaluators", "methods"])
def test_the_inventory_is_readable_without_json(capsys, command):
    assert run_command([command]) == 0
    assert "description" in capsys.readouterr().out


def test_an_unknown_evaluator_is_answered_with_packs_and_classes(capsys):
    models = ("--base", TOY / "base", "--source", TOY / "sort")
    for command in (("evaluators", "nope"), ("init", *models, "--evaluator", "nope", "--out", "-")):
        said = fails(capsys, *command)
        assert "synthetic" in said
        assert "toy-skills" in said


def test_a_folder_in_the_working_directory_is_described_by_its_name_alone(capsys, monkeypatch):
    monkeypatch.chdir(TOY.parents[1] / "private_task")
    assert prints(capsys, "evaluators", "words", "--json")["evaluators"][0]["kind"] == "pack"


def test_an_unknown_baseline_is_answered_with_the_nearest(capsys, write_spec):
    assert "did you mean 'ties'" in fails(capsys, "baseline", write_spec(), "--name", "tis", "--ray", "none")


def test_an_unknown_method_is_answered_with_the_nearest(capsys):
    assert "did you mean 'slerp'" in fails(capsys, "methods", "slurp")


def command_words(command, words=()):
    """Each command with the words that call it."""
    for name, each in getattr(command, "commands", {}).items():
        yield (*words, name), each
        yield from command_words(each, (*words, name))


@pytest.mark.parametrize(("words", "command"), list(command_words(typer.main.get_command(app))))
def test_the_help_has_every_word_that_was_written_for_it(capsys, monkeypatch, words, command):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 500)
    assert run_command([*words, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for text in (command.help, *(getattr(each, "help", None) for each in command.params)):
        assert "".join((text or "").split()) in shown  # brackets would be read as markup, and be gone


def test_the_help_of_a_run_has_every_place_of_a_storage_url_and_of_workers(capsys, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 500)
    assert run_command(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(text.partition(" ")[0] in shown for text in ALLOWED if text.startswith(("env:", "file:")))
    assert "ADDRESS|auto|local|none" in shown


def test_every_option_of_every_command_is_given_in_a_test():
    """By name alone: helpers of tests add the command to the options that they are given."""
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    words = {word for node in nodes if isinstance(node, ast.Constant) for word in str(node.value).split()}
    options = {
        (*command, spellings[0]): words.isdisjoint(spellings)
        for command, each in command_words(typer.main.get_command(app))
        for option in each.params
        for spellings in (option.opts, option.secondary_opts)  # the second ones are those of --no-…
        if option.param_type_name == "option" and spellings
    }
    assert len(options) > 100
    assert [" ".join(option) for option, missing in options.items() if missing] == []


def test_a_bug_of_ours_is_exit_code_one_with_a_log_file(capsys, write_spec, tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.opening.inputs.open_source", lambda *args, **kwargs: 1 / 0)
    assert run_command(["check", str(write_spec())]) == 1
    assert "bug in evomerge: ZeroDivisionError" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "evomerge-error.log").read_text()
