"""`evomerge init` writes a search.yaml that `evomerge check` takes, explains every line of it, and refuses the rest."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from evomerge.cli import run_command
from evomerge.documents import read_document
from evomerge.new_spec.answers import SpecAnswers, named_sources, with_questions
from evomerge.new_spec.source_survey import survey_sources
from evomerge.new_spec.task_choice import choose_tasks
from evomerge.spec import SearchSpec, load_spec

ROOT = Path(__file__).parent.parent.parent
PACK = ROOT / "evaluators" / "toy-skills"


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A working directory with toy models; no terminal to ask on."""
    for name in ("base", "shift", "sort"):
        shutil.copytree(ROOT / "examples" / "toy" / "models" / name, tmp_path / "models" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path / "models"


SOURCES = ("--base", "models/base", "--source", "models/shift", "--source", "second=models/sort")


def init(*arguments):
    return run_command(["init", *map(str, arguments)])


def refused(capsys, *arguments):
    assert init(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_the_file_of_flags_alone_passes_check_and_has_relative_places(capsys):
    assert init(*SOURCES, "--evaluator", "toy-skills", "--out", "mine", "--trials", 7) == 0
    assert "evomerge check" in capsys.readouterr().out
    assert run_command(["check", "mine/search.yaml"]) == 0
    content = yaml.safe_load(Path("mine/search.yaml").read_text())
    assert [each["location"] for each in content["sources"]] == [
        f"../models/{name}" for name in ("base", "shift", "sort")
    ]
    assert [each["name"] for each in content["sources"]] == ["base", "shift", "second"]
    assert (content["name"], content["space"], content["budget"]) == ("mine", "baselines-global", {"trials": 7})


def test_every_field_of_a_spec_is_in_the_file_below_a_comment():
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    lines = Path("search.yaml").read_text().splitlines()
    for name in SearchSpec.model_fields:
        above = next(lines[number - 1] for number, line in enumerate(lines) if re.match(rf"(# )?{name}:", line))
        assert above.startswith("# "), name


def test_the_fields_that_are_commented_out_are_valid_and_the_defaults():
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    text = Path("search.yaml").read_text()
    fields = "|".join(SearchSpec.model_fields)
    Path("search.yaml").write_text(re.sub(rf"^# (?=(?:{fields}): )", "", text, flags=re.MULTILINE))
    full, bare = load_spec(Path("search.yaml")), SearchSpec.model_fields
    for name in ("objective", "sampler", "fidelity", "warm_start", "verdict", "storage_patience", "missing", "allow"):
        assert getattr(full, name) == bare[name].default, name
    assert full.baselines is not None


def test_what_is_called_a_default_is_one_and_what_is_called_an_example_is_none():
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    text = Path("search.yaml").read_text()
    own, defaults, examples = re.split(r"^# ---- .* ----$", text, flags=re.MULTILINE)
    written = yaml.safe_load(own)

    def keys(part):
        return set(re.findall(rf"^# ({'|'.join(SearchSpec.model_fields)}): ", part, flags=re.MULTILINE))

    def spec_of(part):
        lines = re.sub(rf"^# (?=(?:{'|'.join(keys(part))}): )", "", part, flags=re.MULTILINE)
        Path("part.yaml").write_text(lines)
        return SearchSpec(**written, **read_document(Path("part.yaml"), "part"))

    assert keys(defaults) | keys(examples) | keys(own) | written.keys() == SearchSpec.model_fields.keys()
    plain = SearchSpec(**written)
    assert [name for name in keys(defaults) if getattr(spec_of(defaults), name) != getattr(plain, name)] == []
    assert [name for name in keys(examples) if getattr(spec_of(examples), name) == getattr(plain, name)] == []


def test_tasks_of_a_folder_become_an_evaluator_beside_the_file(capsys):
    tasks = ("--task", "toy_shift", "--task", "toy_count:acc", "--task-search-path", PACK, "--limit", 50)
    assert init(*SOURCES, *tasks, "--out", "mine") == 0
    capsys.readouterr()
    assert run_command(["check", "mine/search.yaml", "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["evaluator"]["items"]
    assert items["search"] == {"toy_shift": 50, "toy_count": 50}
    pack = yaml.safe_load(Path("mine/evaluator/evaluator.yaml").read_text())
    assert [each["metric"] for each in pack["tasks"]] == ["exact_match", "acc"]


def test_what_is_there_is_replaced_with_force_only(capsys):
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    before = Path("search.yaml").read_text()
    capsys.readouterr()
    assert "--force" in refused(capsys, *SOURCES, "--evaluator", "synthetic")
    assert Path("search.yaml").read_text() == before
    assert init(*SOURCES, "--evaluator", "synthetic", "--force") == 0
    assert yaml.safe_load(Path("search.yaml").read_text())["evaluator"] == "synthetic"


def test_with_a_dash_the_file_is_printed_and_nothing_is_written(capsys):
    tasks = ("--task", "toy_shift", "--task-search-path", PACK)
    assert init(*SOURCES, *tasks, "--out", "-") == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["sources"][1] == {"name": "shift", "location": "models/shift"}
    assert "#     - {task: toy_shift, metric: exact_match, limit: 200}" in out
    assert os.listdir() == ["models"]  # noqa: PTH208


def test_without_a_terminal_every_flag_that_is_missing_is_named(capsys):
    line = refused(capsys)
    for flag in ("--base", "--source", "--evaluator", "--task"):
        assert flag in line
    assert "--base" not in refused(capsys, "--base", "models/base")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("--source", "models/none"), "there is no directory"),
        (("--source", "models"), "neither config.json"),
        (("--source", "base=models/sort"), "NAME=PLACE"),
        (("--source", "shift=models/sort"), "each name once"),
        (("--space", "ties-per-blok"), "did you mean 'ties-per-block'"),
        (("--task", "toy_sort"), "--evaluator and --task"),
        (("--storage", "sqlit:///x.db"), "sqlite"),
    ],
)
def test_what_no_search_could_take_is_refused_and_nothing_is_left(capsys, changed, says):
    line = refused(capsys, *SOURCES, "--evaluator", "toy-skills", "--out", "mine", *changed)
    assert says in line
    assert os.listdir() == ["models"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("evaluator", "says"), [("toy-skils", "did you mean 'toy-skills'"), ("models", "it has no evaluator.yaml")]
)
def test_an_evaluator_that_does_not_exist_is_refused(capsys, evaluator, says):
    assert says in refused(capsys, *SOURCES, "--evaluator", evaluator)


def test_an_expert_of_another_architecture_is_refused_with_the_difference(capsys, models):
    change(models / "shift", hidden_size=999, num_hidden_layers=2)
    line = refused(capsys, *SOURCES, "--evaluator", "toy-skills")
    assert "'shift': hidden_size is 999" in line
    assert "'shift': num_hidden_layers is 2" in line
    assert "'second'" not in line


def test_another_vocabulary_or_tie_is_answered_by_the_policy_for_it(capsys, models):
    change(models / "shift", vocab_size=7, tie_word_embeddings=not _tied(models / "base"))
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    spec = load_spec(Path("search.yaml"))
    assert (spec.tokenizer, spec.missing) == ("base", "base")
    assert "shift" in capsys.readouterr().err


def _tied(folder):
    return json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True)


def test_an_adapter_is_recognised_and_refused_as_a_base(capsys, models):
    (models / "sort" / "adapter_config.json").write_text('{"r": 4, "peft_type": "LORA"}')
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    assert "# LoRA adapter of rank 4" in Path("search.yaml").read_text()
    assert "second" in capsys.readouterr().err
    sources = ("--base", "models/sort", "--source", "models/shift")
    assert "is an adapter" in refused(capsys, *sources, "--evaluator", "toy-skills", "--force")


def test_a_hub_model_that_cannot_be_seen_is_left_to_check(capsys):
    assert init("--base", "org/none", "--source", "org/other", "--evaluator", "synthetic") == 0
    assert "could not be looked at" in capsys.readouterr().err
    assert [each.location for each in load_spec(Path("search.yaml")).sources] == ["org/none", "org/other"]


def test_one_fine_tune_has_a_space_whose_centre_is_that_fine_tune(capsys):
    assert init("--base", "models/base", "--source", "models/shift", "--evaluator", "synthetic") == 0
    capsys.readouterr()
    assert run_command(["check", "search.yaml", "--json"]) == 0
    space = json.loads(capsys.readouterr().out)["space"]
    assert (space["dimensions"], space["centre"]) == (3, "task_arithmetic(weight=1)")


def test_with_gpus_there_is_a_worker_for_each_and_the_dtype_of_the_weights(monkeypatch, models):
    change(models / "base", dtype="float16")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert init(*SOURCES, "--evaluator", "toy-skills") == 0
    spec = load_spec(Path("search.yaml"))
    assert (spec.workers.count, spec.workers.gpus, spec.dtype) == (3, 1, "float16")


def test_a_storage_of_the_command_line_begins_in_the_working_directory(tmp_path):
    flags = ("--storage", "sqlite:///study.db", "--out", "mine")
    assert init(*SOURCES, "--evaluator", "synthetic", *flags) == 0
    assert load_spec(Path("mine/search.yaml")).storage_url == f"sqlite:///{tmp_path}/study.db"


# lm-eval's own tasks: found by the text of their files.


def test_tasks_of_lm_eval_have_the_first_metric_that_they_list():
    assert choose_tasks(["arc_easy", "gsm8k:exact_match"], [], 10).metrics == {
        "arc_easy": "acc",
        "gsm8k": "exact_match",
    }


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("arc_eazy", "did you mean 'arc_easy'"),
        ("mmlu", "is a group of tasks"),
        ("arc_easy", "benchmark_test_sets"),
    ],
)
def test_tasks_of_lm_eval_that_no_search_takes_are_refused(capsys, task, says):
    assert says in refused(capsys, *SOURCES, "--task", task, "--out", "mine")
    assert os.listdir() == ["models"]  # noqa: PTH208


def test_a_public_test_set_is_taken_where_it_is_allowed():
    assert init(*SOURCES, "--task", "arc_easy", "--allow", "benchmark_test_sets") == 0
    assert load_spec(Path("search.yaml")).allow == ("benchmark_test_sets",)


# The example.


def test_a_number_of_items_is_refused_where_there_is_no_task_that_it_is_for(capsys):
    flags = (*SOURCES, "--evaluator", "synthetic", "--limit", 5)
    assert "--limit is the number of search items of each --task" in refused(capsys, *flags)


def test_the_example_is_copied_into_a_new_folder_only(capsys):
    assert init("--example", "toy", "--out", "toy") == 0
    assert [each.name for each in load_spec(Path("toy/search.yaml")).sources][:2] == ["base", "shift"]
    capsys.readouterr()
    assert "new folder" in refused(capsys, "--example", "toy", "--out", "toy", "--json")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--example", "toi", "--out", "toy"), "did you mean 'toy'"),
        (("--example", "toy"), "give --out FOLDER"),
        (("--example", "toy", "--out", "toy", "--trials", 3), "nothing else"),
        (("--example", "toy", "--out", "toy", "--limit", 7), "nothing else"),
    ],
)
def test_an_example_with_anything_else_is_refused(capsys, flags, says):
    assert says in refused(capsys, *flags)


# Questions.


def test_questions_are_asked_for_what_no_flag_gives():
    answered = {
        "Base model": "models/base",
        "Its fine-tunes": "models/shift second=models/sort",
        "Scored by": "toy-skills",
        "Search space": "by the sources",
        "Trials": "12",
        "Storage": "a file beside the spec",
    }
    asked = []

    def ask(question, default):
        asked.append(question)
        return next(answer for begin, answer in answered.items() if question.startswith(begin))

    answers = with_questions(SpecAnswers(experts={}), ask, {"out"})
    assert answers == SpecAnswers(
        base="models/base",
        experts={"shift": "models/shift", "second": "models/sort"},
        evaluator="toy-skills",
        trials=12,
    )
    assert len(asked) == len(answered)


def test_what_is_no_evaluator_is_a_list_of_tasks():
    answers = with_questions(
        SpecAnswers(base="b", experts={"e": "p"}), lambda *_: "arc_easy, boolq", {"space", "trials"}
    )
    assert (answers.evaluator, answers.tasks) == (None, ("arc_easy", "boolq"))


def test_names_of_places_are_made_valid_and_distinct():
    places = ["org/best", "a/shift", "b/shift", "org/a.b c"]
    assert list(named_sources(places)) == ["best-model", "shift", "shift-2", "a-b-c"]


def test_facts_of_sources_are_read_without_their_weights(models):
    for folder in ("base", "shift"):
        (models / folder / "model.safetensors").unlink()
    survey = survey_sources("models/base", {"shift": "models/shift"})
    assert (survey.depth, survey.base.words) == (6, "llama, 6 layers")


def test_on_a_terminal_a_person_is_asked(tmp_path):
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "evomerge", "init", "--out", "-"]
    process = subprocess.Popen(command, env=env, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True)
    os.close(theirs)
    for line in ("models/base", "models/shift", "synthetic", "", "5", ""):
        os.write(ours, f"{line}\n".encode())
    out = process.communicate(timeout=300)[0]
    os.close(ours)
    assert process.returncode == 0
    content = yaml.safe_load(out)
    assert out.startswith("#")
    assert (content["budget"], content["evaluator"]) == ({"trials": 5}, "synthetic")
