"""A pack with a task of every output type, whose requests are short and long, for models of 256 positions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "oak", "pine", "yew")
MODEL_LENGTH = 256  # tokens; one character is one token

# Characters of the stories of each part: on both sides of windows of 16 to 64 tokens and of an original length of 64.
# The calibration part is what a model scores in between, and all of it is longer than what it scores before and after.
LENGTHS: dict[str, tuple[int, ...]] = {
    "search": (0, 5, 12, 25, 40, 90, 150),
    "held_out": (8, 30, 110),
    "calibration": (170, 190),
}
LENGTHS_BEYOND: dict[str, tuple[int, ...]] = {
    "search": (5, 25, 90, 280),
    "held_out": (30, 300),
    "calibration": (420, 440),
}

_TASKS: dict[str, dict[str, Any]] = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{story}} which tree?",
        "doc_to_target": "{{options.index(word)}}",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "weigh": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{story}} a letter:",
        "doc_to_target": "{{word[0]}}",
        "doc_to_choice": ["a", "b", "c", "e", "f", "h", "l", "o", "p", "y"],
        "target_delimiter": "",
        "metric_list": [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}],
    },
    "last": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{story}} then came",
        "doc_to_target": " {{word}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{story}} {{word}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{story}} write {{word}}:",
        "doc_to_target": "{{word[0]}}",
        "generation_kwargs": {"until": ["\n", "q"], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {
                "name": "first letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z])"},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def write_pack(folder: Path, *, max_length: int | None = None) -> Path:
    """Write the pack.

    Args:
        folder: where; it does not exist yet.
        max_length: tokens of a sequence, where that shall not be what the model's config says; with more than
            `MODEL_LENGTH` some stories are longer than that, too.
    """
    (folder / "tasks").mkdir(parents=True)
    rng = random.Random(7)
    lengths = LENGTHS_BEYOND if max_length and max_length > MODEL_LENGTH else LENGTHS
    documents = [_document(rng, part, length) for part, each in lengths.items() for length in each]
    (folder / "items.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
    for name, content in _TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "items.jsonl"}}, "test_split": "test"}
        _write_yaml(folder / "tasks" / f"{name}.yaml", {"task": name, **data, **content})
    settings: dict[str, Any] = {
        "name": "architectures",
        "tasks_folder": "tasks",
        "tasks": [{"task": name, "metric": content["metric_list"][0]["metric"]} for name, content in _TASKS.items()],
        "split": {"by": "field", "field": "part"},
    }
    _write_yaml(folder / "evaluator.yaml", settings | ({"max_length": max_length} if max_length else {}))
    return folder


def _document(rng: random.Random, part: str, length: int) -> dict[str, Any]:
    options = rng.sample(WORDS, 3)
    story = " ".join(rng.choice(WORDS) for _ in range(1 + length // 3))[:length].strip()
    return {"part": part, "story": story, "options": options, "word": rng.choice(options)}


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
