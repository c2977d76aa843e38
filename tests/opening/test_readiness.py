"""What `check` calls ready runs; what cannot be scored is refused by `check` and `run`, before a study is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from models import BERT, GPT2
from safetensors.torch import load_file, save_file
from tiny_pack import CHARACTERS, TASKS, make_model, make_tokenizer, write_pack

from evomerge.cli import run_command
from evomerge.evaluation import load_pack
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.packs.items import ItemBlock
from evomerge.testing.evaluator_contract import candidate

VOCABULARY = {"vocab_size": 4 + len(CHARACTERS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(base=MODEL, tokenizer=…, tasks=…, pack=…) -> the line with which `check` and `run` both refuse a search.

    Base and expert are the same model; the run must not leave a study.
    """
    monkeypatch.chdir(tmp_path)

    def lines(
        base: Any = None,
        tokenizer: Any = None,
        tasks: dict[str, dict[str, Any]] | None = None,
        pack: dict[str, Any] | None = None,
        change: Callable[[Path], None] = lambda folder: None,
    ) -> str:
        for name in ("base", "expert"):
            (base or make_model(0)).save_pretrained(tmp_path / name)
            (tokenizer or make_tokenizer()).save_pretrained(tmp_path / name)
            change(tmp_path / name)
        chosen = tasks or {"toy_pick": TASKS["toy_pick"]}
        metrics = [{"task": name, "metric": task["metric_list"][0]["metric"]} for name, task in chosen.items()]
        write_pack(tmp_path / "pack", {"tasks": metrics, **(pack or {})}, chosen)
        spec = {
            "name": "refused",
            "sources": [{"name": name, "location": str(tmp_path / name)} for name in ("base", "expert")],
            "space": "task-arithmetic-per-block",
            "evaluator": str(tmp_path / "pack"),
            "budget": {"trials": 2},
            "baselines": [],
        }
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
        found = []
        for command in (["check"], ["run", "--ray", "none"]):
            assert run_command([command[0], str(tmp_path / "search.yaml"), *command[1:]]) == 2, capsys.readouterr()
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1
            found.append(errors[0])
        assert found[0] == found[1]
        return found[0]

    return lines


def model_of(kind: str, config: str, **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, kind)(getattr(transformers, config)(**settings))


def writes(**changes: Any) -> dict[str, dict[str, Any]]:
    return {"toy_write": {**TASKS["toy_write"], "filter_list": TASKS["toy_write"]["filter_list"], **changes}}


def reads(**changes: Any) -> dict[str, dict[str, Any]]:
    task = {**TASKS["toy_last"], "metric_list": [TASKS["toy_last"]["metric_list"][1]]}
    return {"toy_last": {**task, **changes}}


@pytest.mark.parametrize(
    ("kind", "config", "settings", "says"),
    [
        ("BartForConditionalGeneration", "BartConfig", BART, "encoder-decoder"),
        ("T5ForConditionalGeneration", "T5Config", T5, "no causal language model"),
        ("BertLMHeadModel", "BertConfig", {**BERT, "is_decoder": False}, "no causal language model"),
        ("ElectraForCausalLM", "ElectraConfig", {**BERT, "is_decoder": False}, "no causal language model"),
        ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "n_positions": 16}, "cannot run a sequence of"),
    ],
)
def test_a_model_that_cannot_be_scored_is_named(
    refused: Callable[..., str], kind: str, config: str, settings: dict[str, Any], says: str
) -> None:
    line = refused(model_of(kind, config, **{**settings, **VOCABULARY}), pack={"max_length": 200})
    assert says in line


def to_int8(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = (tensors[name] * 20).to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_integers_for_weights_are_named(refused: Callable[..., str]) -> None:
    line = refused(change=to_int8)
    assert "'base'" in line
    assert "model.layers.0.mlp.up_proj.weight is int8" in line


def without(token: str) -> Any:
    tokenizer = make_tokenizer()
    setattr(tokenizer, token, None)
    return tokenizer


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "chat_template is not set"),
        ("{% for message in messages %}", "unknown tag|end of template|TemplateSyntaxError"),
        ("{{ raise_exception('only one question') }}", "only one question"),
        ({"tools": "{{ messages }}"}, "default"),
    ],
    ids=["missing", "broken", "refusing", "unnamed"],
)
def test_a_chat_template_that_gives_no_prompt_is_named_with_the_task(
    refused: Callable[..., str], template: Any, says: str
) -> None:
    import re

    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    line = refused(tokenizer=tokenizer, pack={"chat_template": True})
    assert "task 'toy_pick'" in line
    assert re.search(says, line)


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (writes(generation_kwargs={"until": ["\n"], "max_gen_toks": 256}), "may write 256 tokens"),
        (writes(generation_kwargs={"until": ["\n"], "max_gen_toks": 300, "num_beams": 2}), "may write 300 tokens"),
        (writes(doc_to_text=""), "the prompt '' has no tokens"),
        (reads(doc_to_target=""), "0 to score"),
        (reads(doc_to_target="{{word * 100}}"), "at most 256 can be scored"),
    ],
    ids=["as long as the model", "longer, with beams", "no prompt", "nothing to score", "too much to score"],
)
def test_a_request_that_cannot_be_run_is_named_with_task_and_item(
    refused: Callable[..., str], tasks: dict[str, Any], says: str
) -> None:
    (task,) = tasks
    line = refused(tasks=tasks)
    assert f"task {task!r}, item " in line
    assert says in line


def test_a_tokenizer_without_an_end_cannot_end_a_text(refused: Callable[..., str]) -> None:
    assert "no end token" in refused(tokenizer=without("eos_token"), tasks=writes())


def test_a_tokenizer_without_start_and_end_cannot_begin_one(refused: Callable[..., str]) -> None:
    tokenizer = without("eos_token")
    tokenizer.bos_token = None
    assert "neither a start nor an end token" in refused(tokenizer=tokenizer)


@pytest.mark.parametrize("metric", ["bits_per_byte", "perplexity"])
def test_a_metric_that_never_appears_is_named(refused: Callable[..., str], metric: str) -> None:
    known = {"metric": metric, "aggregation": "mean", "higher_is_better": False}
    line = refused(tasks={"toy_pick": {**TASKS["toy_pick"], "metric_list": [known]}})
    assert metric in line
    assert "toy_pick" in line


def test_a_class_without_output_embeddings_scores_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(0)
    pack = load_pack(write_pack(tmp_path / "pack"))
    evaluator, other = (HarnessEvaluator(pack, make_tokenizer(), seed=3) for _ in range(2))
    expected = evaluator.score(candidate(model), ItemBlock("search"))
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    found = other.score(candidate(model), ItemBlock("search"))
    for name, task in found.tasks.items():
        assert task.outcomes == pytest.approx(expected.tasks[name].outcomes, abs=1e-4)


def test_what_a_worker_finds_invalid_ends_the_run_with_exit_code_two_and_can_be_mended(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base that is too large to be tried on the controller's machine is tried by the first worker."""
    monkeypatch.setattr("evomerge.opening.readiness.available_memory", lambda: 0)
    run = ["run", str(tmp_path / "search.yaml"), "--ray", "none"]
    model = model_of("GPT2LMHeadModel", "GPT2Config", **{**GPT2, "n_positions": 16, **VOCABULARY})
    with pytest.raises(AssertionError):
        refused(model, pack={"max_length": 200})  # here `check` only warns
    assert run_command(run) == 2
    pack = tmp_path / "pack" / "evaluator.yaml"
    pack.write_text(pack.read_text(encoding="utf-8").replace("max_length: 200", "max_length: 16"), encoding="utf-8")
    assert run_command(run) == 0
