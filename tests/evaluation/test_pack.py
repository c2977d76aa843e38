from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from tiny_pack import PACK, TASKS, write_pack

from evomerge.errors import InvalidInput
from evomerge.evaluation import code_files, known_packs, load_pack
from evomerge.packs.pack import Pack, PackTask, check_allowed

PICK = {"tasks": [{"task": "toy_pick", "metric": "acc"}]}


def pack_with(tmp_path: Path, task: dict[str, Any] | str, settings: dict[str, Any] | None = None) -> Path:
    """A pack whose task `toy_pick` has other keys, or is the given text."""
    if isinstance(task, dict):
        return write_pack(tmp_path / "pack", {**PICK, **(settings or {})}, {"toy_pick": {**TASKS["toy_pick"], **task}})
    folder = write_pack(tmp_path / "pack", {**PICK, **(settings or {})})
    (folder / "tasks" / "toy_pick.yaml").write_text(task, encoding="utf-8")
    return folder


def builtin(name: str, metric: str = "acc") -> Pack:
    return Pack.model_validate(
        {"name": "public", "tasks": [{"task": name, "metric": metric}], "split": {"by": "field", "field": "part"}}
    )


def test_a_pack_is_loaded_by_the_path_of_its_folder_or_of_its_file(pack_folder: Path) -> None:
    pack = load_pack(pack_folder)
    assert pack.folder == pack_folder.resolve()
    assert [entry.task for entry in pack.tasks] == list(TASKS)
    assert pack == load_pack(str(pack_folder / "evaluator.yaml"))


def test_every_shipped_pack_is_loaded_by_its_name() -> None:
    for name in known_packs():
        assert load_pack(name).name == name
        check_allowed(load_pack(name), ())


def test_an_unknown_pack_is_answered_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="unknown evaluator 'no-such-pack'"):
        load_pack("no-such-pack")
    with pytest.raises(InvalidInput, match=r"it has no evaluator\.yaml"):
        load_pack(tmp_path)


def test_an_unknown_task_is_answered_with_the_nearest_ones(pack_folder: Path) -> None:
    settings = {**PACK, "tasks": [{"task": "toy_pikc", "metric": "acc"}]}
    (pack_folder / "evaluator.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InvalidInput, match=r"unknown task .* 'toy_pikc'; did you mean 'toy_pick'"):
        load_pack(pack_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taks": []}, "'taks' does not exist; did you mean 'tasks'"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"task": "toy_pick"}]}, r"tasks\.0\.metric"),
        ({"tasks": [{"task": "toy_pick", "metric": "acc", "weight": 0}]}, "weight"),
        ({"tasks": [{"task": "toy_pick", "metric": "acc", "limit": 0}]}, "limit"),
        ({"tasks": [{"task": "toy_pick", "metric": m} for m in ("acc", "acc_norm")]}, "listed twice"),
        ({"split": {"by": "magic"}}, "split"),
        ({"split": {"by": "hash", "shares": {"search": 0.5, "held_out": 0.6}}}, "add up to 1"),
        ({"split": {"by": "hash", "shares": {"search": 1.0}}}, "must both get a share"),
        ({"tasks_folder": "nowhere"}, "no folder inside"),
        ({"tasks_folder": ".."}, "no folder inside"),
    ],
)
def test_a_mistake_in_evaluator_yaml_is_named(pack_folder: Path, change: dict[str, Any], message: str) -> None:
    (pack_folder / "evaluator.yaml").write_text(yaml.safe_dump({**PACK, **change}))
    with pytest.raises(InvalidInput, match=message):
        load_pack(pack_folder)


def test_a_pack_survives_the_way_to_a_worker(pack_folder: Path) -> None:
    pack = load_pack(pack_folder)
    arrived = pickle.loads(pickle.dumps(pack))
    assert arrived == pack
    assert arrived.folder == pack.folder
    assert arrived.fingerprint == pack.fingerprint


def test_code_is_refused_until_it_is_allowed_and_listed_with_its_hash(tmp_path: Path) -> None:
    folder = pack_with(tmp_path, "task: toy_pick\ndataset_path: json\nprocess_docs: !function scoring.clean\n")
    (folder / "tasks" / "scoring.py").write_text("raise SystemExit('this must not run')\n")
    pack = load_pack(folder)
    with pytest.raises(InvalidInput, match=r"toy_pick: !function scoring\.clean.*write 'task_code' into allow"):
        check_allowed(pack, ())
    check_allowed(pack, ["task_code"])
    assert list(code_files(pack)) == ["tasks/scoring.py"]
    before = pack.fingerprint
    (folder / "tasks" / "scoring.py").write_text("changed = True\n")
    assert pack.fingerprint != before


@pytest.mark.parametrize("function", ["os.system", "..outside.run", "missing.run"])
def test_code_outside_the_pack_is_refused_whatever_is_allowed(tmp_path: Path, function: str) -> None:
    (tmp_path / "outside.py").write_text("")
    folder = pack_with(tmp_path, f"task: toy_pick\nprocess_docs: !function {function}\n")
    with pytest.raises(InvalidInput, match="must lie in its folder"):
        load_pack(folder)


@pytest.mark.parametrize(
    "task",
    [
        {"unsafe_code": True},
        {"dataset_kwargs": {"data_files": {"test": "items/all.jsonl"}, "trust_remote_code": True}},
        {"doc_to_text": "{{ ''.__class__.__mro__ }}"},
        {"doc_to_text": "{{ word|attr('x') }}"},
        {"dataset_path": "loader.py"},
    ],
)
def test_everything_that_runs_code_needs_the_permission(tmp_path: Path, task: dict[str, Any]) -> None:
    pack = load_pack(pack_with(tmp_path, task))
    with pytest.raises(InvalidInput, match="'task_code'"):
        check_allowed(pack, ["remote_code", "benchmark_test_sets"])
    check_allowed(pack, ["task_code"])


def test_a_blank_to_fill_in_is_no_code(tmp_path: Path) -> None:
    check_allowed(load_pack(pack_with(tmp_path, {"doc_to_text": "Fill in: ____ {{word}} ____"})), ())


@pytest.mark.parametrize(
    "name",
    ["mmlu_abstract_algebra", "gsm8k", "hellaswag", "arc_challenge", "winogrande", "truthfulqa_mc1", "humaneval"],
)
def test_n15_the_test_set_of_a_public_benchmark_is_not_searched_by_default(name: str) -> None:
    with pytest.raises(InvalidInput, match="'benchmark_test_sets'"):
        check_allowed(builtin(name), ())
    check_allowed(builtin(name), ["benchmark_test_sets"])


def test_n15_a_benchmark_in_a_task_file_is_recognised_by_its_data(tmp_path: Path) -> None:
    pack = load_pack(pack_with(tmp_path, {"dataset_path": "openai/gsm8k", "dataset_kwargs": {}}))
    with pytest.raises(InvalidInput, match="'benchmark_test_sets'"):
        check_allowed(pack, ())


def test_the_training_split_of_a_benchmark_may_be_searched(tmp_path: Path) -> None:
    task = {"dataset_path": "openai/gsm8k", "dataset_kwargs": {}, "test_split": "train"}
    check_allowed(load_pack(pack_with(tmp_path, task)), ())


def test_includes_are_followed_inside_the_pack_only(tmp_path: Path) -> None:
    folder = pack_with(tmp_path, "include: base.yml\ntask: toy_pick\n")
    (folder / "tasks" / "base.yml").write_text("dataset_path: json\ndoc_to_text: '{{word}}'\ntask: other\n")
    task = load_pack(folder).task_files["toy_pick"]
    assert task.config["doc_to_text"] == "{{word}}"
    assert [path.name for path in task.files] == ["toy_pick.yaml", "base.yml"]
    (tmp_path / "outside.yml").write_text("dataset_path: json\n")
    (folder / "tasks" / "base.yml").write_text("include: ../../outside.yml\n")
    with pytest.raises(InvalidInput, match="outside the pack"):
        load_pack(folder)
    (folder / "tasks" / "base.yml").write_text("include: toy_pick.yaml\n")
    with pytest.raises(InvalidInput, match="includes itself"):
        load_pack(folder)


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    levels = "\n".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 9))
    with pytest.raises(InvalidInput, match="YAML aliases"):
        load_pack(pack_with(tmp_path, f"task: toy_pick\nl0: &l0 [x]\n{levels}\n"))


def test_data_paths_are_resolved_against_the_pack(pack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = load_pack(pack_folder)
    monkeypatch.chdir("/")
    task = pack.task_files["toy_pick"]
    files = task.dataset(pack.folder)["dataset_kwargs"]["data_files"]
    assert files["test"] == str(pack.folder / "items" / "all.jsonl")
    assert [path.name for path in task.data_paths(pack.folder)] == ["all.jsonl", "examples.jsonl"]


def test_data_on_the_hub_keeps_its_own_paths(tmp_path: Path) -> None:
    task = {"dataset_path": "someone/something", "dataset_kwargs": {"data_files": "part.json"}, "test_split": "train"}
    pack = load_pack(pack_with(tmp_path, task))
    assert pack.task_files["toy_pick"].dataset(pack.folder) == {}
    assert pack.task_files["toy_pick"].data_paths(pack.folder) == []


def test_missing_data_is_named(tmp_path: Path) -> None:
    pack = load_pack(pack_with(tmp_path, {"dataset_kwargs": {"data_files": {"test": "items/gone.jsonl"}}}))
    with pytest.raises(InvalidInput, match=r"gone\.jsonl' does not exist"):
        _ = pack.fingerprint


@pytest.mark.parametrize("changed", ["items/all.jsonl", "items/examples.jsonl", "tasks/toy_pick.yaml"])
def test_the_fingerprint_follows_every_file_that_counts(pack_folder: Path, changed: str) -> None:
    before = load_pack(pack_folder).fingerprint
    path = pack_folder / changed
    path.write_text(path.read_text() + "\n", encoding="utf-8")
    assert load_pack(pack_folder).fingerprint != before


def test_the_fingerprint_does_not_depend_on_place_name_or_description(pack_folder: Path, tmp_path: Path) -> None:
    other = write_pack(tmp_path / "elsewhere", {"name": "other", "description": "the same, said differently"})
    assert load_pack(other).fingerprint == load_pack(pack_folder).fingerprint


def test_a_setting_by_its_name_in_lm_eval_or_at_its_default_is_the_same_evaluator() -> None:
    def fingerprint(**settings: Any) -> str:
        content = {"name": "public", "tasks": [{"task": "squad_completion", "metric": "contains"}]}
        return Pack.model_validate({**content, "split": {"by": "field", "field": "part"}, **settings}).fingerprint

    chat = fingerprint(chat_template=True)
    assert fingerprint(apply_chat_template=True) == chat
    assert fingerprint(apply_chat_template=True, fewshot_as_multiturn=True) == chat
    assert fingerprint(apply_chat_template=True, fewshot_as_multiturn=False) != chat
    assert fingerprint(fewshot_as_multiturn=False) == fingerprint() != chat


def test_a_metric_with_its_filter_behind_it_is_both() -> None:
    (task,) = builtin("gsm8k", "exact_match,flexible-extract").tasks
    assert (task.metric, task.filter) == ("exact_match", "flexible-extract")
    assert PackTask(task="gsm8k", metric="exact_match,strict-match", filter="strict-match").filter == "strict-match"
    with pytest.raises(ValidationError, match="name two filters; leave one out"):
        PackTask(task="gsm8k", metric="exact_match,strict-match", filter="flexible-extract")


def test_a_split_by_hash_has_the_fingerprint_that_studies_have_stored_unless_it_names_fields(tmp_path: Path) -> None:
    def fingerprint(**split: Any) -> str:
        rule = {"by": "hash", "shares": {"search": 0.5, "held_out": 0.5}, **split}
        pack = Pack.model_validate({**builtin("squad_completion", "contains").model_dump(), "split": rule})
        pack._folder = tmp_path
        return pack.fingerprint

    assert fingerprint() == "4d5c2f9e6d3317d67de84969f5d5bc519ee8671731966067faca109d34522577"
    assert fingerprint(fields=["question"]) != fingerprint()


def test_the_fingerprint_of_a_pack_is_the_one_that_studies_have_stored(tmp_path: Path) -> None:
    pack = builtin("squad_completion", "contains")
    pack._folder = tmp_path
    assert pack.fingerprint == "520aeb755ea9ce52ec4138668d13892820548e82171a57b34c5dff5d6a4e5a6d"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fewshot_as_multiturn": True}, "needs a chat; set apply_chat_template: true"),
        ({"chat_template": True, "apply_chat_template": True}, "are the same setting"),
        ({"dtype": "bfloat16"}, r"dtype is no setting of an evaluator; write dtype into search\.yaml"),
        ({"trust_remote_code": True}, r"allow: \[remote_code\]"),
    ],
)
def test_settings_that_contradict_each_other_or_belong_elsewhere_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_pack(write_pack(tmp_path / "pack", {**PICK, **settings}))


def test_n34_reading_a_pack_loads_nothing_heavy_and_sets_no_variable(pack_folder: Path) -> None:
    code = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "from evomerge.evaluation import code_files, load_pack\n"
        "pack = load_pack(sys.argv[1])\n"
        "pack.fingerprint, code_files(pack)\n"
        "heavy = [name for name in ('torch', 'lm_eval', 'datasets', 'transformers', 'numpy') if name in sys.modules]\n"
        "print(heavy, dict(os.environ) == before)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(pack_folder)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.strip() == "[] True"
