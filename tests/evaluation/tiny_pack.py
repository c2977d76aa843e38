"""A tiny random Llama with a tokenizer of characters, and a tiny pack with a task of every output type."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import yaml

CHARACTERS = string.ascii_lowercase + string.digits + " .?:=\n"
WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "oak", "pine", "yew")

TASKS: dict[str, dict[str, Any]] = {
    "toy_pick": {
        "output_type": "multiple_choice",
        "doc_to_text": "which tree: {{word}}?",
        "doc_to_target": "{{options.index(word)}}",
        "doc_to_choice": "{{options}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
            {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
        ],
    },
    "toy_letter": {
        "output_type": "multiple_choice",
        "doc_to_text": "first letter of {{word}}:",
        "doc_to_target": "{{word[0]}}",
        "doc_to_choice": ["a", "b", "c", "e", "f", "h", "l", "o", "p", "y"],
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "toy_write": {
        "output_type": "generate_until",
        "doc_to_text": "write {{word}} {{number}}:",
        "doc_to_target": "{{'lm'[number | int % 2]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 8, "do_sample": False},
        "filter_list": [
            {"name": "plain", "filter": [{"function": "take_first"}]},
            {
                "name": "letters",
                "filter": [{"function": "regex", "regex_pattern": "([lm])"}, {"function": "take_first"}],
            },
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "toy_last": {
        "output_type": "loglikelihood",
        "doc_to_text": "number {{number}} is the",
        "doc_to_target": " {{word}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "toy_read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}

PACK: dict[str, Any] = {
    "name": "tiny",
    "tasks_folder": "tasks",
    "tasks": [
        {"task": "toy_pick", "metric": "acc"},
        {"task": "toy_letter", "metric": "acc"},
        {"task": "toy_write", "metric": "exact_match", "filter": "letters"},
        {"task": "toy_last", "metric": "perplexity"},
        {"task": "toy_read", "metric": "word_perplexity"},
    ],
    "split": {"by": "field", "field": "part"},
}


def documents(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        options = rng.sample(WORDS, 4)
        drawn.append(
            {
                "number": f"{seed}{number:03d}",
                "word": rng.choice(options),
                "options": options,
                "text": " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14))),
            }
        )
    return drawn


def write_pack(
    folder: Path,
    settings: dict[str, Any] | None = None,
    tasks: dict[str, dict[str, Any]] | None = None,
    count: int = 30,
) -> Path:
    """A pack in `folder`: `count` documents, the first ones to search on, and 12 others for few-shot examples."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "items").mkdir()
    parts = ["calibration"] * (count // 10) + ["search"] * (count // 2)
    parts += ["held_out"] * (count - len(parts))
    items = [{**document, "part": part} for document, part in zip(documents(count, 1), parts, strict=True)]
    write_lines(folder / "items" / "all.jsonl", items)
    examples = [{**document, "part": "example"} for document in documents(12, 2)]
    write_lines(folder / "items" / "examples.jsonl", examples)
    for name, content in (tasks or TASKS).items():
        data = {"test": "items/all.jsonl", "examples": "items/examples.jsonl"}
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
            "test_split": "test",
            "fewshot_split": "examples",
            "fewshot_delimiter": "\n",
            **content,
        }
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**PACK, **(settings or {})}), encoding="utf-8")
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(seed: int, **settings: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=4 + len(CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **{"max_position_embeddings": 256, **settings},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
