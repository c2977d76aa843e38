"""Tasks with Python functions of their own: metrics, `process_results`, `process_docs`, as lm-eval calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_pack import TASKS, make_tokenizer, write_pack

from evomerge.evaluation import ItemBlock, load_pack
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.testing.evaluator_contract import candidate

SEARCH = ItemBlock("search")
NUMBER = [{"metric": "number", "aggregation": "mean", "higher_is_better": True}]


class _Dumper(yaml.SafeDumper):
    """Writes a string that begins with "!function " as lm-eval's reference to a function."""


def _string(dumper: _Dumper, text: str) -> yaml.Node:
    tag, value = ("!function", text[10:]) if text.startswith("!function ") else ("tag:yaml.org,2002:str", text)
    return dumper.represent_scalar(tag, value)


_Dumper.add_representer(str, _string)


def evaluator_of(folder: Path, task: dict[str, Any], code: str, metric: str = "number") -> HarnessEvaluator:
    """An evaluator of toy_pick or toy_write with other settings, whose functions are in `scoring.py`."""
    name = "toy_write" if task.get("output_type") == "generate_until" else "toy_pick"
    content = {**TASKS[name], **task, "filter_list": None}
    write_pack(folder, {"tasks": [{"task": name, "metric": metric}]}, {name: {}})
    file = folder / "tasks" / f"{name}.yaml"
    config = {**yaml.safe_load(file.read_text()), **{key: value for key, value in content.items() if value is not None}}
    file.write_text(yaml.dump(config, Dumper=_Dumper), encoding="utf-8")
    (folder / "tasks" / "scoring.py").write_text(code, encoding="utf-8")
    return HarnessEvaluator(load_pack(folder), make_tokenizer(), seed=3, batch_size=8, allow=("task_code",))


@pytest.mark.parametrize("number", ["numpy.argmax(lls) == 0", "numpy.array(0.5)", "torch.tensor(True)"])
def test_a_number_of_numpy_or_torch_is_the_number_of_an_item(tmp_path: Path, model: Any, number: str) -> None:
    code = (
        f"import numpy, torch\ndef score(doc, results):\n lls = [r[0] for r in results]\n return {{'number': {number}}}"
    )
    task = {"process_results": "!function scoring.score", "metric_list": NUMBER}
    scores = evaluator_of(tmp_path / "pack", task, code).score(candidate(model), SEARCH).tasks["toy_pick"]
    assert set(scores.outcomes) <= {0.0, 0.5, 1.0}
    assert scores.value == pytest.approx(sum(scores.outcomes) / len(scores.outcomes))
