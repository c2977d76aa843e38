"""A made-up multiple-choice pack with few-shot examples and options of several tokens, for speed alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

OPTIONS = 4


def write_pack(folder: Path, *, items: int, shots: int, sampler: str) -> Path:
    """Write the pack.

    Args:
        folder: where; made if it does not exist.
        items: documents that are scored.
        shots: few-shot examples in every prompt.
        sampler: lm-eval's name of the sampler of examples: "first_n" gives all items the same ones, "default" draws
            others for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(5)
    documents = [_document(rng, "search") for _ in range(items)] + [_document(rng, "held_out")]
    _write_lines(folder / "items.jsonl", documents)
    _write_lines(folder / "examples.jsonl", [_document(rng, "example") for _ in range(4 * shots)])
    task = {
        "task": "made_up",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl", "examples": "examples.jsonl"}},
        "test_split": "test",
        "fewshot_split": "examples",
        "fewshot_config": {"sampler": sampler},
        "output_type": "multiple_choice",
        "doc_to_text": "question: {{question}}\nanswer:",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{options}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "made_up.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    pack = {
        "name": "made-up",
        "tasks_folder": "tasks",
        "tasks": [{"task": "made_up", "metric": "acc", "num_fewshot": shots}],
        "split": {"by": "field", "field": "part"},
    }
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(pack), encoding="utf-8")
    return folder


def _document(rng: random.Random, part: str) -> dict[str, object]:
    return {
        "part": part,
        "question": _words(rng, rng.randint(8, 12)),
        "options": [_words(rng, rng.randint(2, 3)) for _ in range(OPTIONS)],
        "gold": rng.randrange(OPTIONS),
    }


def _words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6))) for _ in range(count))


def _write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
