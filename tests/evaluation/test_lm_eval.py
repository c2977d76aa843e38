from __future__ import annotations

import builtins
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from steps_made import steps_made
from tiny_pack import PACK, TASKS, documents, make_model, make_tokenizer, write_lines, write_pack
from tokenizers.processors import TemplateProcessing

from evomerge.engine import batching, flat
from evomerge.errors import InvalidInput, MergeError, OtherSpec
from evomerge.evaluation import Candidate, Evaluator, ItemBlock, Pack, Split, load_pack
from evomerge.evaluation.evaluator import BatchedEvaluator, HarnessScores
from evomerge.evaluation.lm_eval import harness_evaluator
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator, _split
from evomerge.evaluation.lm_eval.reproduction import lm_eval_command, lm_eval_commands, lm_eval_line, write_samples
from evomerge.evaluation.lm_eval.tasks import PreparedTask, builtin_configs, load_tasks
from evomerge.testing.evaluator_contract import EvaluatorContract, candidate

SEARCH = ItemBlock("search")
Build = Callable[..., HarnessEvaluator]


@pytest.fixture(scope="session")
def shared_pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return load_pack(write_pack(tmp_path_factory.mktemp("shared") / "tiny"))


@pytest.fixture
def build(shared_pack: Pack, tmp_path: Path) -> Build:
    """Builds an evaluator with other `settings` in evaluator.yaml, or other `tasks`, or other `options`."""

    def build(
        settings: dict[str, Any] | None = None, tasks: dict[str, dict[str, Any]] | None = None, **options: Any
    ) -> HarnessEvaluator:
        if tasks is None:
            pack = shared_pack.model_validate({**PACK, **(settings or {})})
            pack._folder = shared_pack.folder
        else:
            pack = load_pack(write_pack(tmp_path / f"pack-{len(list(tmp_path.iterdir()))}", settings, tasks))
        return HarnessEvaluator(pack, make_tokenizer(), **{"seed": 3, "batch_size": 8, **options})

    return build


def only(name: str, metric: str, **options: Any) -> dict[str, Any]:
    return {"tasks": [{"task": name, "metric": metric, **options}]}


class TestHarnessContract(EvaluatorContract):
    @pytest.fixture(autouse=True)
    def _live_model(self, pack_folder: Path) -> None:
        self._pack = load_pack(pack_folder)
        self._model = make_model(0)
        self._weights = [
            {name: tensor.clone() for name, tensor in make_model(seed).state_dict().items()} for seed in (0, 1)
        ]

    def build(self, seed: int = 3, split: Split | None = None) -> Evaluator:
        return HarnessEvaluator(self._pack, make_tokenizer(), seed=seed, split=split, batch_size=8)

    def candidates(self) -> tuple[Candidate, Candidate]:
        return candidate(load=lambda: self._merge(0)), candidate(load=lambda: self._merge(1))

    def _merge(self, which: int) -> Any:
        """Changes the weights of the one live model in place, as a worker does."""
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(self._weights[which][name])
        return self._model


LEFT = {"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}


@pytest.mark.parametrize("settings", [{}, LEFT], ids=["written by the engine", "left to lm-eval"])
def test_an_evaluation_that_is_cut_short_anywhere_continues_to_the_same_scores(
    build: Build, settings: dict[str, Any]
) -> None:
    chosen = {"tasks": [{"task": "toy_pick", "metric": "acc"}, {"task": "toy_write", "metric": "exact_match"}]}
    first, model = build(chosen, batch_size=2), make_model(0, **settings)
    whole = first.score(candidate(model), SEARCH)
    states = [step.state() for step in first.score_by_steps(candidate(model), SEARCH)]
    second, other = build(chosen, batch_size=2), make_model(0, **settings)
    for finished in (1, len(states) // 2, len(states) - 1, len(states)):
        made, scores = steps_made(second.score_by_steps(candidate(other), SEARCH, states[finished - 1]))
        assert (scores.tasks, scores.tokens) == (whole.tasks, whole.tokens)
        assert scores.tasks["toy_pick"].gold == whole.tasks["toy_pick"].gold
        assert len(made) == len(states) - finished
    assert len(list(second.score_by_steps(candidate(other), SEARCH, b"of something else"))) == len(states)


CASES = [
    ("toy_pick", "acc", "none"),
    ("toy_pick", "acc_norm", "none"),
    ("toy_pick", "brier_score", "none"),
    ("toy_letter", "acc", "none"),
    ("toy_write", "exact_match", "plain"),
    ("toy_write", "exact_match", "letters"),
    ("toy_last", "perplexity", "none"),
    ("toy_last", "acc", "none"),
    ("toy_read", "word_perplexity", "none"),
    ("toy_read", "bits_per_byte", "none"),
]


@pytest.fixture(scope="session")
def references(shared_pack: Pack) -> dict[int, dict[str, Any]]:
    """Few-shot examples -> what lm-eval itself gives for all tasks."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        evaluator = HarnessEvaluator(shared_pack, make_tokenizer(), seed=3, batch_size=8)
        return {shots: simple_evaluate(evaluator, make_model(0), monkeypatch, num_fewshot=shots) for shots in (0, 3)}


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize(("task", "metric", "filter_name"), CASES)
def test_every_item_scores_what_lm_eval_gives(
    build: Build, references: dict[int, Any], model: Any, task: str, metric: str, filter_name: str, shots: int
) -> None:
    evaluator = build(only(task, metric, filter=filter_name, num_fewshot=shots))
    ours = evaluator.score(candidate(model), SEARCH).tasks[task]
    theirs = references[shots]
    assert theirs["results"][task][f"{metric},{filter_name}"] == pytest.approx(ours.value, rel=1e-4)
    samples = {each["doc_id"]: each for each in theirs["samples"][task] if each["filter"] == filter_name}
    assert set(samples) == set(ours.items)
    for item, outcome in zip(ours.items, ours.outcomes, strict=True):
        assert outcome == pytest.approx(per_item(metric, samples[item]), abs=1e-4)
    requests = evaluator.instances(SEARCH)[task]
    for item, sample in samples.items():
        for request, arguments, (response,) in zip(requests[item], sample["arguments"], sample["resps"], strict=True):
            assert request.args == tuple(arguments)
            assert_same_response(request.resps[0], response)


def test_the_comparison_with_lm_eval_is_not_empty(references: dict[int, Any]) -> None:
    """Right and wrong answers both occur, and few-shot examples change the prompts."""
    for task, metric in (("toy_pick", "acc"), ("toy_write", "exact_match")):
        outcomes = {sample[metric] for sample in references[0]["samples"][task]}
        assert outcomes == {0.0, 1.0}
    assert references[0]["samples"]["toy_pick"][0]["arguments"] != references[3]["samples"]["toy_pick"][0]["arguments"]


def simple_evaluate(
    evaluator: HarnessEvaluator, model: Any, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[str, Any]:
    """lm-eval's own evaluation of the search part, with its own loading, prompts and tokens."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    pack = evaluator.pack
    monkeypatch.chdir(pack.folder)
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=make_tokenizer(), batch_size=8, softmax_dtype="float32"),
        tasks=[entry.task for entry in pack.tasks],
        task_manager=TaskManager(include_path=str(pack.tasks_path), include_defaults=False),
        samples={name: sorted(ids) for name, ids in evaluator.split.items(SEARCH).items()},
        bootstrap_iters=0,
        fewshot_random_seed=evaluator.fewshot_seed,
        **options,
    )
    return results


def per_item(metric: str, sample: dict[str, Any]) -> float:
    if metric in ("word_perplexity", "bits_per_byte"):
        return float(sample[metric][0])
    if metric == "brier_score":
        gold, probabilities = sample[metric]
        return float(sum((p - (choice == gold)) ** 2 for choice, p in enumerate(probabilities)))
    return float(sample[metric])


def assert_same_response(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, tuple):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
        assert ours[1] == theirs[1]
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-5)
    else:
        assert ours == theirs


def test_all_tasks_together_score_what_each_scores_alone(build: Build, model: Any) -> None:
    together = build().score(candidate(model), SEARCH)
    for name, metric, filter_name in [("toy_pick", "acc", "none"), ("toy_write", "exact_match", "letters")]:
        alone = build(only(name, metric, filter=filter_name)).score(candidate(model), SEARCH)
        assert alone.tasks[name].outcomes == together.tasks[name].outcomes


def test_the_printed_command_reproduces_the_scores(build: Build, model: Any, tmp_path: Path) -> None:
    settings = {
        "tasks": [
            {"task": "toy_letter", "metric": "acc", "num_fewshot": 2},
            {"task": "toy_write", "metric": "exact_match", "filter": "letters", "num_fewshot": 2},
        ]
    }
    evaluator = build(settings, device="cpu")
    ours = evaluator.score(candidate(model), ItemBlock("held_out"))
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    values = run_command(evaluator, tmp_path / "model")
    assert values["toy_letter"]["acc,none"] == ours.tasks["toy_letter"].value
    assert values["toy_write"]["exact_match,letters"] == ours.tasks["toy_write"].value


def run_command(evaluator: HarnessEvaluator, model: Path) -> dict[str, Any]:
    """Task -> metric -> what the printed command gives on the held-out items."""
    folder = model.parent
    write_samples(evaluator.split, ItemBlock("held_out"), folder / "samples.json")
    line = lm_eval_line(evaluator, model, folder / "samples.json", ItemBlock("held_out"))
    out = shlex.quote(str(folder / "out"))
    line = line.replace("lm_eval run", f"{sys.executable} -m lm_eval run --log_samples --output_path {out}")
    done = subprocess.run(line, shell=True, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "out").rglob("results*.json")
    values: dict[str, Any] = json.loads(results.read_text())["results"]
    return values


def test_the_printed_command_runs_a_model_with_code_of_its_own(build: Build, model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a model, with=signs"
    settings = only("toy_letter", "acc")
    evaluator = build(settings, device="cpu", allow=("remote_code",))
    ours = evaluator.score(candidate(model), ItemBlock("held_out"))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "modeling_odd.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
        "class OddForCausalLM(LlamaForCausalLM):\n    config_class = OddConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "odd", "auto_map": auto_map}))
    assert run_command(evaluator, folder)["toy_letter"]["acc,none"] == ours.tasks["toy_letter"].value


@pytest.mark.parametrize("shares", [True, False])
def test_the_printed_command_reproduces_prompts_of_which_some_begin_with_the_bos_text(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    if not shares:
        monkeypatch.setattr(batching, "shares_prefixes", lambda *_: False)
    task = TASKS["toy_write"]
    tasks = {"toy_write": {**task, "doc_to_text": "{{['', '<s>'][number | int % 2]}}" + task["doc_to_text"]}}
    pack = load_pack(write_pack(tmp_path / "pack", only("toy_write", "exact_match", filter="letters"), tasks))
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    evaluator = HarnessEvaluator(pack, tokenizer, seed=3, batch_size=8, device="cpu")
    ours = evaluator.score(candidate(model), ItemBlock("held_out")).tasks["toy_write"]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = written(evaluator, ItemBlock("held_out"))
    assert run_command(evaluator, tmp_path / "model")["toy_write"]["exact_match,letters"] == ours.value
    (samples,) = (tmp_path / "out").rglob("samples_toy_write_*.jsonl")
    theirs = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert texts == [each["resps"][0][0] for each in theirs if each["filter"] == "letters"]
    evaluator.batch_size = 1
    evaluator.score(candidate(model), ItemBlock("held_out"))
    assert texts == written(evaluator, ItemBlock("held_out"))


def written(evaluator: HarnessEvaluator, items: ItemBlock) -> list[str]:
    """What the model wrote, item by item."""
    requests = evaluator.instances(items).values()
    return [instance.resps[0] for by_item in requests for each in by_item.values() for instance in each]


def test_a_model_that_depends_on_its_batch_is_run_one_by_one(build: Build) -> None:
    (command,) = lm_eval_commands(build(only("toy_letter", "acc")), "/m", Path("samples.json"), SEARCH, one_by_one=True)
    assert command[command.index("--batch_size") + 1] == "1"


@pytest.mark.parametrize(
    ("generation", "one_by_one"),
    [
        ({"until": ["\n", "e"]}, False),
        ({"until": ["a"]}, True),  # in the name of <pad>
        ({"until": ["ab", "b?"]}, True),  # what follows may move the cut
        ({"until": ["e"], "num_beams": 2}, True),
    ],
    ids=str,
)
def test_texts_that_may_depend_on_their_batch_are_reproduced_one_by_one(
    build: Build, model: Any, generation: dict[str, Any], one_by_one: bool
) -> None:
    task = {**TASKS["toy_write"], "generation_kwargs": {"max_gen_toks": 8, "do_sample": False, **generation}}
    evaluator = build(only("toy_write", "exact_match"), {"toy_write": task})
    assert evaluator.harness_scores(model) == HarnessScores(one_by_one=one_by_one)


def test_tasks_with_other_numbers_of_few_shot_examples_need_commands_of_their_own(build: Build) -> None:
    settings = {
        "tasks": [
            {"task": "toy_letter", "metric": "acc", "num_fewshot": 2},
            {"task": "toy_write", "metric": "exact_match"},
            {"task": "toy_last", "metric": "acc", "num_fewshot": 2},
        ]
    }
    first, second = lm_eval_commands(build(settings), "/model", Path("samples.json"), SEARCH)
    assert "toy_letter,toy_last" in first
    assert first[first.index("--num_fewshot") + 1] == "2"
    assert "toy_write" in second
    assert "--num_fewshot" not in second


def test_no_command_is_printed_for_some_items_of_a_few_shot_task(build: Build) -> None:
    evaluator = build(only("toy_pick", "acc", num_fewshot=2))
    with pytest.raises(InvalidInput, match="ask for the whole part"):
        lm_eval_commands(evaluator, "/model", Path("samples.json"), ItemBlock("search", 0, 5))


def test_n13_building_an_evaluator_leaves_generators_and_environment_alone(build: Build) -> None:
    import random

    import numpy

    before = (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist(), dict(os.environ))
    build(only("toy_pick", "acc", num_fewshot=2))
    assert before == (
        random.getstate(),
        str(numpy.random.get_state()),
        torch.get_rng_state().tolist(),
        dict(os.environ),
    )


def test_n10_few_shot_examples_are_frozen_for_all_candidates_and_workers(build: Build, model: Any) -> None:
    settings = only("toy_pick", "acc", num_fewshot=3)
    first, second = build(settings), build(settings)
    first.score(candidate(model), ItemBlock("held_out"))
    prompts = [prompts_of(first, model), prompts_of(first, make_model(1)), prompts_of(second, model)]
    assert prompts[0] == prompts[1] == prompts[2]
    assert prompts_of(build(settings, seed=4), model) != prompts[0]


def prompts_of(evaluator: HarnessEvaluator, model: Any) -> dict[int, list[Any]]:
    evaluator.score(candidate(model), SEARCH)
    items = evaluator.instances(SEARCH)["toy_pick"]
    return {item: [instance.args for instance in instances] for item, instances in items.items()}


def test_n16_the_direction_of_a_metric_is_the_tasks_own(build: Build, model: Any) -> None:
    scores = build().score(candidate(model), SEARCH)
    assert {name: task.higher_is_better for name, task in scores.tasks.items()} == {
        "toy_pick": True,
        "toy_letter": True,
        "toy_write": True,
        "toy_last": False,
        "toy_read": False,
    }


def test_the_log_probability_of_the_right_answer_is_that_of_lm_eval(
    build: Build, references: dict[int, Any], model: Any
) -> None:
    scores = build().score(candidate(model), SEARCH).tasks
    for task in ("toy_pick", "toy_letter", "toy_last"):
        samples = {each["doc_id"]: each for each in references[0]["samples"][task]}
        gold = scores[task].gold
        assert gold is not None
        for item, number in zip(scores[task].items, gold, strict=True):
            sample = samples[item]
            right = 0 if task == "toy_last" else sample["target"]
            if task == "toy_letter":
                right = TASKS[task]["doc_to_choice"].index(right)
            assert number == pytest.approx(sample["resps"][int(right)][0][0], abs=1e-4)
    assert scores["toy_write"].gold is None
    assert scores["toy_read"].gold is None


def test_n18_log_probabilities_after_a_swap_of_weights_equal_a_reference_forward(build: Build, model: Any) -> None:
    evaluator = build(only("toy_last", "perplexity"))
    evaluator.score(candidate(model), SEARCH)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(make_model(5).state_dict()[name])
    task = evaluator.score(candidate(model), SEARCH).tasks["toy_last"]
    tokenizer = make_tokenizer()
    for item, outcome in zip(task.items, task.outcomes, strict=True):
        context, target = evaluator.instances(SEARCH)["toy_last"][item][0].args
        tokens = torch.tensor([tokenizer.encode(context + target)])
        with torch.no_grad():
            table = make_model(5)(tokens).logits[0].log_softmax(-1)
        start = len(tokenizer.encode(context))
        reference = sum(table[at - 1, tokens[0, at]].item() for at in range(start, tokens.shape[1]))
        assert outcome == pytest.approx(reference, abs=1e-4)


def test_n30_a_candidate_builds_no_task_opens_no_file_and_tokenises_nothing(
    build: Build, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jinja2
    import transformers
    from lm_eval.tasks import TaskManager

    evaluator = build()
    first = evaluator.score(candidate(model), SEARCH)
    calls: list[str] = []

    def forbid(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(f"{owner.__name__}.{name}")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    forbid(PreparedTask, "__init__")
    forbid(PreparedTask, "build_all_requests")
    forbid(TaskManager, "__init__")
    forbid(transformers.AutoTokenizer, "from_pretrained")
    forbid(transformers.PreTrainedTokenizerFast, "_encode_plus")
    forbid(jinja2.Environment, "from_string")
    forbid(Path, "open")
    forbid(builtins, "open")
    again = evaluator.score(candidate(model), SEARCH)
    assert calls == []
    assert again.tasks == first.tasks
    evaluator._tokenizer.plain.encode("a")
    assert len(calls) == 1, "the counter must see what it is there to see"


def test_the_batch_size_does_not_change_the_outcomes(build: Build, model: Any) -> None:
    small, large = (build(batch_size=size).score(candidate(model), SEARCH) for size in (3, 64))
    for name, task in small.tasks.items():
        assert task.outcomes == pytest.approx(large.tasks[name].outcomes, abs=1e-3)


def test_the_batch_size_found_on_a_cpu_is_fixed_and_smaller_for_large_vocabularies(build: Build, model: Any) -> None:
    evaluator = build(batch_size=None)
    assert evaluator.find_batch_size(model) == evaluator.find_batch_size(model) == 64
    evaluator.score(candidate(model), SEARCH)
    assert evaluator.batch_size == 64
    wide = make_model(0)
    wide.set_output_embeddings(torch.nn.Linear(32, 100_000, bias=False))
    assert evaluator.find_batch_size(wide) == 32


def test_the_batch_size_counts_with_held_out_items_that_are_longer_than_those_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = write_pack(tmp_path / "long", only("toy_read", "bits_per_byte"))
    items = pack / "items" / "all.jsonl"
    documents = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
    for each in documents:
        each["text"] = " ".join([each["text"]] * (8 if each["part"] == "held_out" else 1))
    items.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
    evaluator = HarnessEvaluator(load_pack(pack), make_tokenizer(), seed=3)
    model = make_model(0, max_position_embeddings=4096)
    lm = evaluator._lm(model, 1)
    search, held_out = (evaluator._lengths(lm, part).longest for part in ("search", "held_out"))
    assert held_out > 4 * search
    vocabulary = model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(harness_evaluator, "CPU_LOGITS", 8 * held_out * vocabulary)
    assert evaluator.find_batch_size(model) == 8


def test_the_batch_size_of_the_study_can_be_set_later(build: Build, model: Any) -> None:
    evaluator = build(batch_size=None)
    assert isinstance(evaluator, BatchedEvaluator)
    before = evaluator.score(candidate(model), SEARCH)
    evaluator.batch_size = 4
    after = evaluator.score(candidate(model), SEARCH)
    assert evaluator.batch_size == 4
    assert after.tasks["toy_read"].outcomes == pytest.approx(before.tasks["toy_read"].outcomes, abs=1e-3)


@pytest.mark.parametrize(("fitting", "found"), [(1, 1), (2, 1), (11, 4), (10_000, 512)])
def test_on_a_gpu_the_batch_size_is_one_step_below_the_last_that_fits(
    model: Any, monkeypatch: pytest.MonkeyPatch, fitting: int, found: int
) -> None:
    def forward(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if tokens.shape[0] > fitting:
            raise torch.cuda.OutOfMemoryError
        return torch.zeros(1)

    monkeypatch.setattr(flat, "forward", forward)
    assert flat.largest_batch(model, length=5, writes=False) == found


class _RoomForCaches(torch.nn.Module):
    """A model on a GPU that has room for the keys and values of a few sequences."""

    device = torch.device("cpu")

    def forward(self, tokens: torch.Tensor, logits_to_keep: Any, use_cache: bool) -> Any:
        if use_cache and tokens.shape[0] > 8:
            raise torch.cuda.OutOfMemoryError
        return SimpleNamespace(logits=torch.zeros(tokens.shape[0], 1, 3))


def test_on_a_gpu_texts_leave_room_for_their_keys_and_values() -> None:
    model: Any = _RoomForCaches()
    assert flat.largest_batch(model, length=5, writes=False) == 512
    assert flat.largest_batch(model, length=5, writes=True) == 4


@pytest.mark.parametrize("task", ["toy_pick", "toy_write", "toy_read"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_candidate_without_numbers_is_an_error_and_never_a_score(
    build: Build, model: Any, task: str, poison: float
) -> None:
    metrics = {"toy_pick": "acc", "toy_write": "exact_match", "toy_read": "bits_per_byte"}
    evaluator = build(only(task, metrics[task]))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(poison)
    with pytest.raises(MergeError, match="not numbers"):
        evaluator.score(candidate(model), SEARCH)


def test_a_failed_candidate_leaves_nothing_behind(build: Build, model: Any) -> None:
    evaluator = build()
    before = evaluator.score(candidate(model), SEARCH)
    broken = make_model(0)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(MergeError):
        evaluator.score(candidate(broken), SEARCH)
    assert evaluator.score(candidate(model), SEARCH).tasks == before.tasks


def test_only_the_items_of_the_part_are_forwarded(build: Build, model: Any) -> None:
    evaluator = build(only("toy_read", "bits_per_byte"))
    lines = (evaluator.pack.folder / "items" / "all.jsonl").read_text().splitlines()
    held_out = {document["text"] for document in map(json.loads, lines) if document["part"] == "held_out"}
    evaluator.score(candidate(model), SEARCH)
    assert not held_out & {text for text, *_ in evaluator._tokenizer._encoded}


def test_held_out_items_are_refused_as_few_shot_examples(build: Build) -> None:
    leaking = {"toy_pick": {**TASKS["toy_pick"], "fewshot_split": "test"}}
    with pytest.raises(InvalidInput, match="would draw held-out items of task 'toy_pick' as few-shot examples"):
        build(only("toy_pick", "acc", num_fewshot=2), leaking)
    build(only("toy_pick", "acc", num_fewshot=0), leaking)


def test_held_out_items_of_another_task_are_refused_as_few_shot_examples(tmp_path: Path) -> None:
    drawing = {"task": "toy_pick", "metric": "acc", "num_fewshot": 2}
    settings = {"tasks": [drawing, {"task": "toy_letter", "metric": "acc"}]}
    folder = write_pack(tmp_path / "tiny", settings)
    lines = [json.loads(line) for line in (folder / "items" / "all.jsonl").read_text().splitlines()]
    held_out = [{**line, "part": "example"} for line in lines if line["part"] == "held_out"]
    own = [{**line, **document} for line, document in zip(lines, documents(len(lines), 7), strict=True)]
    write_lines(folder / "items" / "own.jsonl", own)
    write_lines(folder / "items" / "examples.jsonl", held_out)
    task = folder / "tasks" / "toy_pick.yaml"
    task.write_text(task.read_text().replace("items/all.jsonl", "items/own.jsonl"))
    with pytest.raises(InvalidInput, match="'toy_pick' would draw held-out items of task 'toy_letter'"):
        HarnessEvaluator(load_pack(str(folder)), make_tokenizer(), seed=3)


def test_a_limit_takes_a_seeded_sample_of_the_search_part_only(build: Build) -> None:
    evaluator = build(only("toy_pick", "acc", limit=5))
    everything = build(only("toy_pick", "acc"))
    assert evaluator.split.parts["search"]["toy_pick"] == everything.split.parts["search"]["toy_pick"][:5]
    assert evaluator.split.parts["held_out"] == everything.split.parts["held_out"]


def test_changed_documents_are_refused_when_the_study_goes_on(build: Build, tmp_path: Path) -> None:
    evaluator = build(only("toy_pick", "acc"), {"toy_pick": TASKS["toy_pick"]})
    items = evaluator.pack.folder / "items" / "all.jsonl"
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    lines[-1]["word"] = lines[-1]["options"][0] = "ginkgo"
    write_lines(items, lines)
    with pytest.raises(OtherSpec, match=r"toy_pick \(held_out\)"):
        HarnessEvaluator(load_pack(evaluator.pack.folder), make_tokenizer(), seed=3, split=evaluator.split)


def test_the_working_directory_does_not_matter_and_the_pack_is_not_written_to(
    build: Build, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluator = build()
    before = sorted(evaluator.pack.folder.rglob("*"))
    evaluator.score(candidate(model), SEARCH)
    assert sorted(evaluator.pack.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"task": "toy_pick", "metric": "accc"}, "unknown metric of task 'toy_pick' 'accc'; did you mean 'acc'"),
        ({"task": "toy_pick", "metric": "acc", "filter": "nono"}, "unknown filter of task 'toy_pick' 'nono'"),
        ({"task": "toy_pick", "metric": "mcc"}, "gives no number for every single item"),
    ],
)
def test_a_metric_that_cannot_be_used_is_named_before_the_first_trial(
    build: Build, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        build({"tasks": [entry]})


@pytest.mark.parametrize(
    "sampling", [{"do_sample": True}, {"temperature": 0.7}, {"do_sample": None, "temperature": 0.7}]
)
def test_a_task_that_draws_its_answers_at_random_is_refused(build: Build, model: Any, sampling: dict[str, Any]) -> None:
    drawing = {**TASKS["toy_write"], "generation_kwargs": {"until": ["e"], "max_gen_toks": 8, **sampling}}
    evaluator = build(only("toy_write", "exact_match"), {"toy_write": drawing})
    with pytest.raises(InvalidInput, match=r"task 'toy_write', item \d+: .* at random"):
        evaluator.check_requests(model)


def test_a_request_that_asks_for_a_draw_is_refused_whatever_its_task_is_configured_for(
    build: Build, model: Any
) -> None:
    evaluator = build(only("toy_write", "exact_match"))
    requests = evaluator.prompts.part("held_out")["toy_write"]
    item = max(requests)
    (instance,) = requests[item]
    instance.arguments = (instance.args[0], {"do_sample": True, "temperature": 0.7})
    with pytest.raises(InvalidInput, match=rf"task 'toy_write', item {item}: .* at random"):
        evaluator.check_requests(model)


def test_a_task_that_fixes_its_few_shot_examples_at_none_is_not_silently_overruled(build: Build) -> None:
    fixed = {"toy_pick": {**TASKS["toy_pick"], "num_fewshot": 0}}
    with pytest.raises(InvalidInput, match="which lm-eval never overrides"):
        build(only("toy_pick", "acc", num_fewshot=2), fixed)


def test_data_that_cannot_be_read_is_an_error_of_one_line(build: Build, tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "broken")
    (folder / "items" / "all.jsonl").write_text("{not json\n")
    with pytest.raises(InvalidInput, match="lm-eval cannot load the tasks of evaluator 'tiny'") as caught:
        load_tasks(load_pack(folder), ())
    assert "\n" not in str(caught.value)


def test_standard_errors_are_closed_form(build: Build, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = build({"tasks": [*only("toy_pick", "acc")["tasks"], *only("toy_last", "perplexity")["tasks"]]})
    ours = evaluator.score(candidate(model), SEARCH).tasks
    from lm_eval.api.metrics import mean_stderr

    assert ours["toy_pick"].stderr == pytest.approx(mean_stderr(ours["toy_pick"].outcomes))
    relative = mean_stderr(ours["toy_last"].outcomes)
    assert ours["toy_last"].stderr == pytest.approx(ours["toy_last"].value * relative)


def test_the_standard_error_of_a_weighted_perplexity_is_that_of_a_ratio(build: Build, model: Any) -> None:
    """Against the jackknife, which needs no formula."""
    import math

    evaluator = build(only("toy_read", "bits_per_byte"))
    ours = evaluator.score(candidate(model), SEARCH).tasks["toy_read"]
    texts = [evaluator.instances(SEARCH)["toy_read"][item][0].args[0] for item in ours.items]
    pairs = list(zip(ours.outcomes, [len(text.encode()) for text in texts], strict=True))
    without = [
        -sum(value for value, _ in kept) / sum(weight for _, weight in kept) / math.log(2)
        for kept in (pairs[:left_out] + pairs[left_out + 1 :] for left_out in range(len(pairs)))
    ]
    mean = sum(without) / len(without)
    jackknife = math.sqrt((len(without) - 1) / len(without) * sum((each - mean) ** 2 for each in without))
    assert ours.stderr == pytest.approx(jackknife, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "multiturn"),
    [
        ({"chat_template": True}, True),  # lm-eval's own default
        ({"apply_chat_template": True, "fewshot_as_multiturn": True}, True),
        ({"apply_chat_template": True, "fewshot_as_multiturn": False}, False),
    ],
)
def test_chat_templates_and_system_instructions_are_those_of_lm_eval(
    build: Build, model: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], multiturn: bool
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    pack = build({**only("toy_pick", "acc", num_fewshot=2), **settings, "system_instruction": "be brief."}).pack
    evaluator = HarnessEvaluator(pack, tokenizer, seed=3, batch_size=8)
    ours = evaluator.score(candidate(model), SEARCH).tasks["toy_pick"]

    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(pack.folder)
    theirs: Any = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=["toy_pick"],
        task_manager=TaskManager(include_path="tasks", include_defaults=False),
        samples={"toy_pick": sorted(ours.items)},
        bootstrap_iters=0,
        num_fewshot=2,
        apply_chat_template=True,
        fewshot_as_multiturn=multiturn,
        system_instruction="be brief.",
        fewshot_random_seed=evaluator.fewshot_seed,
    )
    for sample in theirs["samples"]["toy_pick"]:
        instances = evaluator.instances(SEARCH)["toy_pick"][sample["doc_id"]]
        assert [instance.args for instance in instances] == [tuple(arguments) for arguments in sample["arguments"]]
        assert sample["acc"] == ours.outcomes[ours.items.index(sample["doc_id"])]
    assert "be brief." in instances[0].args[0]
    assert instances[0].args[0].count("assistant:") == (3 if multiturn else 1)


def test_a_template_that_asks_for_today_gives_the_same_prompts_and_fingerprint_every_day(
    build: Build, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = build({**only("toy_pick", "acc", num_fewshot=1), "chat_template": True}).pack
    plain = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}a:"
    found = []
    for day in (1, 2):
        clock = SimpleNamespace(now=partial(datetime, 2031, 1, day))
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{{ strftime_now('%d %m %Y') }}\n" + plain
        evaluator = HarnessEvaluator(chats, tokenizer, seed=3, batch_size=8)
        asked = evaluator.prompts.part("held_out")["toy_pick"].values()
        found.append((evaluator.fingerprint, [instance.args for requests in asked for instance in requests]))
        assert tokenizer.chat_template.startswith("{{ strftime_now"), "exports have the template of the base"
    assert found[0] == found[1]
    assert found[0][1][0][0].startswith("26 07 2024\n")
    (warning,) = [each for each in evaluator.check_requests(model) if "today" in each]
    assert "26 Jul 2024" in warning


def test_only_chats_by_a_template_that_asks_for_today_have_a_date_in_the_fingerprint(build: Build) -> None:
    def fingerprint(template: str, settings: dict[str, Any]) -> str:
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        pack = build({**only("toy_pick", "acc"), **settings}).pack
        return HarnessEvaluator(pack, tokenizer, seed=3).fingerprint

    plain, dated, chat = "{{ messages[0].content }}", "{{ strftime_now('%d') }}", {"chat_template": True}
    assert fingerprint(plain, {}) == fingerprint(dated, {}) == build(only("toy_pick", "acc")).fingerprint
    assert fingerprint(plain, chat) == build({**only("toy_pick", "acc"), **chat}).fingerprint
    assert fingerprint(plain, chat) != fingerprint(dated, chat)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ()),
        ({"chat_template": True}, ("--apply_chat_template",)),
        (
            {"apply_chat_template": True, "fewshot_as_multiturn": False},
            ("--apply_chat_template", "--fewshot_as_multiturn", "false"),
        ),
    ],
)
def test_the_printed_command_says_how_a_chat_is_rendered(
    build: Build, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    command = lm_eval_command(
        build({**only("toy_letter", "acc"), **settings}).pack,
        ["toy_letter"],
        "/m",
        Path("samples.json"),
        dtype="float32",
        num_fewshot=None,
        batch_size=1,
        unsafe_code=False,
        device=None,
        fewshot_seed=0,
    )
    assert tuple(command[command.index("1") + 1 : command.index("--seed")]) == words


def test_long_texts_are_cut_as_lm_eval_cuts_them(build: Build, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = build({**only("toy_read", "bits_per_byte"), "max_length": 16})
    ours = evaluator.score(candidate(model), SEARCH).tasks["toy_read"]
    model.config.max_position_embeddings = 16
    theirs = simple_evaluate(evaluator, model, monkeypatch)
    assert theirs["results"]["toy_read"]["bits_per_byte,none"] == pytest.approx(ours.value, rel=1e-5)


def test_the_fingerprint_depends_on_prompts_and_documents(build: Build) -> None:
    changed = {**TASKS["toy_pick"], "doc_to_text": "what tree: {{word}}?"}
    fingerprints = {
        build(only("toy_pick", "acc")).fingerprint,
        build(only("toy_pick", "acc_norm")).fingerprint,
        build(only("toy_pick", "acc", num_fewshot=1)).fingerprint,
        build(only("toy_pick", "acc"), {"toy_pick": changed}).fingerprint,
    }
    assert len(fingerprints) == 4
    assert build(only("toy_pick", "acc")).fingerprint in fingerprints


def test_tasks_of_lm_eval_are_fingerprinted_by_their_configuration(build: Build) -> None:
    evaluator = build()
    own = evaluator.pack.model_copy(update={"tasks_folder": None})
    configs = builtin_configs(own, evaluator.tasks)
    assert set(configs) == set(TASKS)
    assert "which tree" in configs["toy_pick"]
    assert not any(" at 0x" in config or str(evaluator.pack.folder) in config for config in configs.values())


def split_of(folder: Path) -> Split:
    pack = load_pack(folder)
    return _split(pack, load_tasks(pack, ()), None, seed=3)


def test_a_split_by_content_keeps_items_where_they_are_when_documents_are_added(tmp_path: Path) -> None:
    shares = {"by": "hash", "shares": {"calibration": 0.1, "search": 0.4, "held_out": 0.5}}
    folder = write_pack(tmp_path / "hashed", {**only("toy_pick", "acc"), "split": shares}, count=40)
    before = split_of(folder)
    items = folder / "items" / "all.jsonl"
    old = [json.loads(line) for line in items.read_text().splitlines()]
    write_lines(items, [{**document, "part": "search"} for document in documents(7, 9)] + old)
    after = split_of(folder)
    for part in ("search", "held_out"):
        moved = [item + 7 for item in before.parts[part]["toy_pick"]]
        assert [item for item in after.parts[part]["toy_pick"] if item >= 7] == moved


def test_the_trials_of_a_model_leave_nothing_in_it(build: Build) -> None:
    """Dynamic rotary embeddings keep the frequencies of the longest sequence that they have seen."""
    rotary = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    settings = only("toy_read", "word_perplexity")
    evaluator, other = build(settings, batch_size=None), build(settings)
    model = make_model(0, max_position_embeddings=20, rope_parameters=rotary)
    evaluator.pack = other.pack = evaluator.pack.model_copy(update={"max_length": 200})
    before = model.model.rotary_emb.inv_freq.clone()
    evaluator.find_batch_size(model)
    assert evaluator.harness_scores(model) == HarnessScores(one_by_one=True, never=True)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    ours = evaluator.score(candidate(model), SEARCH).tasks["toy_read"]
    fresh = make_model(0, max_position_embeddings=20, rope_parameters=rotary)
    assert ours.outcomes == other.score(candidate(fresh), SEARCH).tasks["toy_read"].outcomes


def test_prompts_that_lose_their_beginning_are_counted_once_per_task(build: Build, model: Any) -> None:
    tasks = [
        {"task": "toy_pick", "metric": "acc", "num_fewshot": 2},
        {"task": "toy_write", "metric": "exact_match", "num_fewshot": 2},
        {"task": "toy_letter", "metric": "acc"},
        {"task": "toy_read", "metric": "bits_per_byte"},
    ]
    evaluator = build({"max_length": 40, "tasks": tasks})
    warnings = [warning for warning in evaluator.check_requests(model) if "lose their beginning" in warning]
    assert [warning.partition(" are")[0] for warning in warnings] == [
        "task 'toy_pick': 27 of 27 prompts",
        "task 'toy_write': 27 of 27 prompts",
    ]
    assert "longer than 40 tokens" in warnings[0]
    whole = build({"max_length": 256, "tasks": tasks}).check_requests(model)
    assert not any("lose their beginning" in warning for warning in whole)


def test_a_prompt_of_just_the_length_that_the_model_holds_is_not_cut(build: Build, model: Any) -> None:
    for task, metric, spare in (("toy_last", "acc", -1), ("toy_write", "exact_match", 8)):
        instances = [each[0] for each in build(only(task, metric)).prompts.part("search")[task].values()]
        lm = build(only(task, metric))._lm(model, 1)
        instance = instances[0]
        rest = instance.args[1] if task == "toy_last" else ""
        length = len(instance.args[0]) + len(rest) + spare
        fits = build({**only(task, metric), "max_length": length})._lm(model, 1)
        short = build({**only(task, metric), "max_length": length - 1})._lm(model, 1)
        assert [each.is_cut(instance) for each in (lm, fits, short)] == [False, False, True]


def test_held_out_items_that_ask_what_the_search_asks_are_counted(tmp_path: Path, model: Any) -> None:
    split: dict[str, Any] = {"by": "hash", "shares": {"search": 0.5, "held_out": 0.5}}
    settings = {**only("toy_letter", "acc", num_fewshot=1), "split": split}
    folder = write_pack(tmp_path / "tiny", settings, count=60)  # ten words
    tokenizer = make_tokenizer()
    (warning,) = HarnessEvaluator(load_pack(str(folder)), tokenizer, seed=3).check_requests(model)
    assert re.match(r"task 'toy_letter': \d\d of \d\d held-out items ask what an item of the search asks", warning)
    by_word = {**PACK, **settings, "split": {**split, "fields": ["word"]}}
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(by_word), encoding="utf-8")
    with pytest.raises(InvalidInput, match="would draw held-out items"):  # examples about the same words
        HarnessEvaluator(load_pack(str(folder)), tokenizer, seed=3)
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**by_word, **only("toy_letter", "acc")}), encoding="utf-8")
    assert not HarnessEvaluator(load_pack(str(folder)), tokenizer, seed=3).check_requests(model)
