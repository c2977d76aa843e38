"""`evomerge import mergekit-evolve`: a configuration becomes a search that runs, and every line of it is explained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge import load_spec, run_search
from evomerge.cli import run_command
from evomerge.packs.pack import load_pack
from evomerge.spaces import load_space

ROOT = Path(__file__).parent.parent.parent
TOY = ROOT / "examples" / "toy" / "models"
SHIPPED = ROOT / "evaluators" / "toy-skills"

EXAMPLE = f"""\
genome:
    models:
      - {TOY}/shift
      - {TOY}/reverse
      - {TOY}/sort
    merge_method: dare_ties
    base_model: {TOY}/base
    tokenizer_source: null # optional
    layer_granularity: 3

    # optional:
    normalize: false
    allow_negative_weights: false
    smooth: false
    filters: [self_attn, mlp]
tasks:
  - name: toy_reverse
    weight: 1.0 # optional
    metric: "exact_match,none"
  - name: toy_sort
    weight: 0.5
    metric: "exact_match,none"
"""

Import = Callable[..., int]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """imported(content, *options) -> exit code of the import into the folder `out`, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(content: str | dict[str, Any], *options: object) -> int:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (tmp_path / "config.yml").write_text(text)
        return run_command(["import", "mergekit-evolve", "config.yml", "--out", "out", *map(str, options)])

    return run


def _example(genome: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """The example with other values; None takes a key out."""
    content = yaml.safe_load(EXAMPLE)
    content["genome"] |= genome or {}
    content |= top
    for part in (content, content["genome"]):
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
    return dict(content)


def _yaml(name: str) -> Any:
    return yaml.safe_load(Path("out", name).read_text())


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A folder with one task of lm-eval's, whose data is in the working directory."""
    folder = tmp_path / "own-tasks"
    folder.mkdir()
    task = (SHIPPED / "tasks" / "toy_count.yaml").read_text()
    (folder / "count.yaml").write_text(task.replace("items/toy_count.jsonl", "letters.jsonl"))
    items = (SHIPPED / "items" / "toy_count.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "letters.jsonl").write_text("".join(items[:16]))
    return folder


def test_an_example_configuration_runs_after_one_import(imported: Import, own_task: Path) -> None:
    example = EXAMPLE.partition("tasks:")[0] + "tasks:\n  - name: toy_count\n"
    assert imported(example, "--task-search-path", own_task, "--max-fevals", 2) == 0
    spec = load_spec("out/search.yaml")
    study = run_search(spec.model_copy(update={"baselines": ()}), ray="none")  # which would take ten times as long
    first, second = (trial.params for trial in study.trials)
    assert len(first) == 2 * 3 * 3 * 2  # groups, models, parts, weight and density
    assert {round(value, 9) for gene, value in first.items() if gene.endswith("weight")} == {0.333333333}
    assert {value for gene, value in first.items() if gene.endswith("density")} == {1.0}
    assert first != second
    assert all(trial.value is not None for trial in study.trials)


def test_what_becomes_of_every_line_is_said_and_stays_in_the_search(
    imported: Import, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--vllm", "--strategy", "pool", "--num-gpus", 4, "--timeout", 7200, "--batch-size", "auto")
    content = EXAMPLE + "limit: 20\nnum_fewshot: 2\nrandom_init: true\nfewshot_as_multiturn: true\n"
    assert imported(content, "--task-search-path", pack, *options) == 0
    told = capsys.readouterr().err.splitlines()
    assert "line 7, same: base is the base" in told
    assert "line 9, same: 3 layers form a group" in told
    assert "line 12, same: normalize: false is weighting: sum" in told
    assert "line 20, same: toy_sort by exact_match after the filter none, weight 0.5" in told
    assert "line 23, differs: 20 items of each task, drawn once at random; mergekit takes the first ones" in told
    fixed = "itself has num_fewshot: 0, which lm-eval never overrides, so it has no examples"
    assert f"line 24, same: toy_sort {fixed}" in told
    assert "line 25, left out: the search begins at weights 1/n and densities 1, not at random" in told
    assert "line 26, left out: without a chat there are no turns" in told
    for option in ("--vllm", "--strategy pool", "--batch-size"):
        assert any(line.startswith(f"left out: {option}: ") for line in told)
    written = Path("out/search.yaml").read_text()
    assert all(f"# {line}\n" in written for line in told)
    spec = load_spec(Path("out/search.yaml"))
    assert (spec.budget.trials, spec.budget.hours) == (100, 2.0)
    assert (spec.workers.count, spec.workers.gpus) == (4, 1)


def test_in_memory_is_left_out_since_every_worker_merges_in_its_memory(
    imported: Import, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(EXAMPLE, "--task-search-path", pack, "--in-memory") == 0
    assert "left out: --in-memory: every worker merges in its memory" in capsys.readouterr().err


def test_fields_of_the_genome_are_those_of_the_space(
    imported: Import, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genome = {"allow_negative_weights": True, "smooth": True, "merge_method": "ties", "normalize": None}
    assert imported(_example(genome), "--task-search-path", pack) == 0
    assert _yaml("space.yaml")["semantics"] == "mergekit"
    evolutionary = load_space("out/space.yaml").genome
    assert evolutionary is not None
    assert evolutionary.chosen.model_dump() == {
        "method": "ties",
        "layer_granularity": 3,
        "filters": ("self_attn", "mlp"),
        "allow_negative_weights": True,
        "smooth": True,
        "limit": 2.0,
        "options": {"weighting": "norm"},
    }
    assert "differs: behind the layers values are those of the last layer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "given", "options"),
    [
        ("linear", None, {"normalize": True}),
        ("linear", False, {"normalize": False}),
        ("task_arithmetic", None, {"normalize": False}),
        ("task_arithmetic", True, {"normalize": True}),
        ("ties", None, {"weighting": "norm"}),
        ("dare_ties", None, {"weighting": "norm"}),
        ("slerp", True, {}),
    ],
)
def test_weights_are_normalised_where_mergekit_does_so(
    method: str, given: bool | None, options: dict[str, Any], imported: Import, pack: Path
) -> None:
    genome = {"merge_method": method, "normalize": given, "filters": None}
    assert imported(_example(genome), "--task-search-path", pack) == 0
    assert _yaml("space.yaml")["genome"]["evolutionary"].get("options", {}) == options


def test_options_of_the_command_are_those_of_the_search(imported: Import, pack: Path) -> None:
    options = ("--sigma0", 0.4, "--force-population-size", 8, "--random-seed", 7, "--allow", "remote_code")
    assert imported(_example(), "--task-search-path", pack, *options) == 0
    spec = load_spec(Path("out/search.yaml"))
    assert spec.sampler.settings == {"sigma0": 0.1, "popsize": 8}  # of a range of 4
    assert (spec.seed, spec.allow, spec.dtype) == (7, ("remote_code",), "bfloat16")
    assert spec.baselines is None


def test_fields_of_tasks_are_those_of_the_evaluator(imported: Import, pack: Path) -> None:
    tasks = [{"name": "toy_reverse", "metric": "exact_match"}, {"name": "toy_sort", "weight": 0}, "toy_count"]
    settings = {"limit": 9, "apply_chat_template": False, "system_instruction": "Be brief."}
    assert imported(_example(tasks=tasks, **settings), "--task-search-path", pack) == 0
    made = load_pack("out/evaluator")
    assert [(task.task, task.metric, task.filter, task.limit) for task in made.tasks] == [
        ("toy_reverse", "exact_match", None, 9),
        ("toy_count", "acc", "none", 9),
    ]
    assert (made.chat_template, made.system_instruction) == (False, "Be brief.")
    files = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    names = ("toy_reverse", "toy_count")
    copied = {f"tasks/tasks/{name}.yaml" for name in names} | {f"items/{name}.jsonl" for name in names}
    assert files == {"evaluator.yaml"} | copied


def test_code_and_includes_of_a_task_are_copied_and_have_to_be_allowed(
    imported: Import, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own" / "tasks"
    shutil.copytree(pack / "tasks", folder / "shared")
    (tmp_path / "own" / "items.jsonl").write_text(json.dumps({"prompt": "ab", "answer": "ba", "part": "search"}) + "\n")
    (folder / "mine").mkdir()
    (folder / "mine" / "scoring.py").write_text("from words import first\n")
    (folder / "mine" / "words.py").write_text("def first(doc): return doc\n")
    task = {"include": "../shared/toy_reverse.yaml", "task": "mine"}
    data = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "own" / "items.jsonl")}}}
    text = yaml.safe_dump({**task, **data}) + "process_docs: !function scoring.first\n"
    (folder / "mine" / "mine.yaml").write_text(text)
    content = _example(tasks=[{"name": "mine", "metric": "exact_match,none"}])
    assert imported(content, "--task-search-path", folder) == 2
    assert "runs code (mine: !function scoring.first)" in capsys.readouterr().err
    assert not Path("out").exists()
    assert imported(content, "--task-search-path", folder, "--allow", "task_code") == 0
    tasks = Path("out/evaluator/tasks")
    assert {path.name for path in tasks.rglob("*") if path.is_file()} == {
        "mine.yaml", "toy_reverse.yaml", "scoring.py", "words.py"
    }  # fmt: skip


def test_tasks_of_no_search_path_are_lm_evals_own_and_test_sets_have_to_be_allowed(
    imported: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    content = _example(tasks=[{"name": "gsm8k", "metric": "exact_match,strict-match"}])
    assert imported(content) == 2
    assert "benchmark_test_sets" in capsys.readouterr().err
    assert imported(content, "--allow", "benchmark_test_sets") == 0
    assert "tasks_folder" not in _yaml("evaluator/evaluator.yaml")
    assert _yaml("evaluator/evaluator.yaml")["tasks"][0]["filter"] == "strict-match"
    assert "gsm8k by exact_match after the filter strict-match, weight 1, a task of lm-eval's own" in (
        capsys.readouterr().err
    )


def test_chats_are_mergekits_default_where_the_tokenizer_has_a_template(
    imported: Import, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(_example(), "--task-search-path", pack) == 0
    assert "prompts are plain text, as the tokenizer has no chat template" in capsys.readouterr().err
    shutil.rmtree("out")
    assert imported(_example(apply_chat_template=True), "--task-search-path", pack) == 2
    assert "line 22: the tokenizer in" in capsys.readouterr().err
    chatty = shutil.copytree(TOY / "base", tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert imported(_example({"base_model": str(chatty)}), "--task-search-path", pack) == 0
    assert _yaml("evaluator/evaluator.yaml")["chat_template"] is True
    shutil.rmtree("out")
    turns = _example({"base_model": str(chatty)}, fewshot_as_multiturn=False)
    assert imported(turns, "--task-search-path", pack) == 0
    assert "same: few-shot examples and the question are one message" in capsys.readouterr().err
    assert load_pack("out/evaluator").fewshot_as_multiturn is False


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_without_a_base_the_first_model_is_merged_too_and_there_are_no_baselines(
    method: str, imported: Import, pack: Path
) -> None:
    genome = {"merge_method": method, "base_model": None, "filters": None}
    assert imported(_example(genome), "--task-search-path", pack) == 0
    spec = load_spec(Path("out/search.yaml"))
    assert [source.name for source in spec.sources] == ["shift", "reverse", "sort"]
    assert spec.search_space.sources == "all"
    assert spec.baselines == ()


def test_the_tokenizer_of_a_model_without_a_base_makes_it_the_base(imported: Import, pack: Path) -> None:
    genome = {"merge_method": "linear", "base_model": None, "tokenizer_source": f"model:{TOY}/sort"}
    assert imported(_example(genome), "--task-search-path", pack) == 0
    search = _yaml("search.yaml")
    assert [source["name"] for source in search["sources"]] == ["sort", "shift", "reverse"]
    assert search["tokenizer"] == "base"


def test_a_base_among_the_models_has_no_genes_where_it_has_no_task_vector(
    imported: Import, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(TOY / name) for name in ("shift", "base", "sort")]
    assert imported(_example({"models": models}), "--task-search-path", pack) == 0
    assert "line 4, left out: the genes of the base, whose task vector is zero" in capsys.readouterr().err
    spec = load_spec(Path("out/search.yaml"))
    assert ([source.name for source in spec.sources], spec.search_space.sources) == (
        ["base", "shift", "sort"],
        "experts",
    )


def test_names_of_sources_are_words_and_none_but_the_base_is_called_base(
    imported: Import, pack: Path, tmp_path: Path
) -> None:
    for folder in ("a/base", "b/best", "c/v0.1"):
        shutil.copytree(TOY / "shift", tmp_path / folder)
    models = ["a/base", "b/best", "c/v0.1", "org/model@main"]
    options = ("--task-search-path", pack, "--source", "mine=c/v0.1", "--source", f"model={TOY}/sort")
    assert imported(_example({"models": models, "base_model": "org/other"}), *options) == 0
    assert [(each["name"], each["location"]) for each in _yaml("search.yaml")["sources"]] == [
        ("other", "org/other"),
        ("base-2", str(tmp_path / "a/base")),
        ("best-2", str(tmp_path / "b/best")),
        ("mine", str(tmp_path / "c/v0.1")),
        ("model", str(TOY / "sort")),
    ]


def test_an_adapter_of_the_base_is_a_source_by_itself(imported: Import, pack: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    models = [f"{TOY}/base+lora", {"model": {"path": str(TOY / "base")}, "lora": {"path": "org/own", "revision": "v2"}}]
    assert imported(_example({"models": models}), "--task-search-path", pack) == 0
    assert _yaml("search.yaml")["sources"][1:] == [
        {"name": "lora", "location": str(tmp_path / "lora")},
        {"name": "own", "location": "org/own", "revision": "v2"},
    ]


@pytest.mark.parametrize(
    ("genome", "top", "reason"),
    [
        ({"merge_method": "dare_tie"}, {}, "`merge_method` is one of linear, task_arithmetic, ties, dare_ties, slerp"),
        ({"base_model": None}, {}, "line 6: dare_ties needs a `base_model`"),
        ({"layer_granularty": 2}, {}, "mergekit-evolve has no `layer_granularty`; did you mean 'layer_granularity'?"),
        ({"layer_granularity": "all"}, {}, "`layer_granularity` is an integer, not 'all'"),
        ({"models": ["org/a+org/lora"]}, {}, "org/a+org/lora is a model with an adapter, and here adapters are those"),
        ({"models": ["org/a+b+c"]}, {}, "a model is a directory or a hub id, not 'org/a+b+c'"),
        ({"base_model": "org/a+org/lora"}, {}, "org/a+org/lora is a model with an adapter, which is no base"),
        ({"models": ["nowhere"]}, {}, "nowhere is neither a directory, here or beside the file, nor a hub id"),
        ({"models": ["org/a", "org/a"]}, {}, "org/a is there twice"),
        ({"models": [str(TOY / "base")]}, {}, "a base and at least one model beside it"),
        ({"merge_method": "slerp", "filters": ["mlp"]}, {}, "`filters` is off"),
        ({"merge_method": "linear", "allow_negative_weights": True}, {}, "an average has no weights below 0 here"),
        ({"tokenizer_source": "union"}, {}, "a union of vocabularies is made beforehand: `evomerge extend-vocabulary`"),
        ({"tokenizer_source": "org/other"}, {}, "config and tokenizer are the base's here"),
        ({"filters": ["base"]}, {}, "none of them is `base`"),
        ({}, {"tasks": []}, "at least one task"),
        ({}, {"tasks": [{"name": "toy_sort", "weight": "much"}]}, "`weight` is a number, not 'much'"),
        ({}, {"tasks": ["toy_sort", "toy_sort"]}, "toy_sort is there twice"),
        ({}, {"tasks": [{"name": "toy_sort", "weight": 0}]}, "no task has a weight"),
        ({}, {"tasks": ["toy_sort", "own"]}, "own is in no --task-search-path"),
        ({}, {"tasks": [{"name": "toy_count", "weight": -1}]}, "toy_count says that more acc is better"),
        ({}, {"limit": 0}, "`limit` is an integer of 1 or more, not 0"),
        ({}, {"shuffle": "yes"}, "`shuffle` is true or false, not 'yes'"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_line(
    genome: dict[str, Any],
    top: dict[str, Any],
    reason: str,
    imported: Import,
    pack: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert imported(_example(genome, **top), "--task-search-path", pack) == 2
    error = capsys.readouterr().err
    assert "config.yml, line " in error
    assert reason in error
    assert not Path("out").exists()


def test_a_lower_score_that_is_better_is_the_tasks_to_say(
    imported: Import, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pack, tmp_path / "tasks")
    task = folder / "tasks" / "toy_sort.yaml"
    task.write_text(task.read_text().replace("higher_is_better: true", "higher_is_better: false"))
    negative = [{"name": "toy_sort", "metric": "exact_match,none", "weight": -2}]
    assert imported(_example(tasks=negative), "--task-search-path", folder) == 0
    assert "differs: the sign has no meaning: toy_sort itself says" in capsys.readouterr().err
    assert _yaml("evaluator/evaluator.yaml")["tasks"][0]["weight"] == 2
    shutil.rmtree("out")
    assert imported(_example(tasks=[{**negative[0], "weight": 1}]), "--task-search-path", folder) == 0
    assert "so it is minimised; mergekit maximises it" in capsys.readouterr().err


def test_data_that_is_nowhere_and_a_folder_that_exists_are_refused(
    imported: Import, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(_example(), "--task-search-path", pack / "tasks") == 2
    assert "'items/toy_reverse.jsonl' is neither in the working directory" in capsys.readouterr().err
    Path("out").mkdir()
    Path("out/study.db").touch()
    assert imported(_example(), "--task-search-path", pack) == 2
    assert "out exists, and may have studies in it" in capsys.readouterr().err
    assert Path("out/study.db").exists()


def test_a_file_of_one_merge_is_told_from_a_search(imported: Import, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported({"merge_method": "linear", "models": []}) == 2
    assert "this is a file of one merge; `evomerge import mergekit` reads" in capsys.readouterr().err
