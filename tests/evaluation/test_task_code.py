"""Tasks with Python functions of their own: metrics, `process_results`, `process_docs`, as lm-eval calls them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
import numpy
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_pack import TASKS, make_tokenizer, write_pack

from evomerge.errors import InvalidInput
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
    content = {**TASKS[name], "filter_list": None, **task}
    write_pack(folder, {"tasks": [{"task": name, "metric": metric}]}, {name: {}})
    file = folder / "tasks" / f"{name}.yaml"
    config = {**yaml.safe_load(file.read_text()), **{key: value for key, value in content.items() if value is not None}}
    file.write_text(yaml.dump(config, Dumper=_Dumper), encoding="utf-8")
    (folder / "tasks" / "scoring.py").write_text(code, encoding="utf-8")
    return HarnessEvaluator(load_pack(folder), make_tokenizer(), seed=3, batch_size=8, allow=("task_code",))


def simple_evaluate(evaluator: HarnessEvaluator, model: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """lm-eval's own evaluation of the search part."""
    pack = evaluator.pack
    monkeypatch.chdir(pack.folder)
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=make_tokenizer(), batch_size=1, softmax_dtype="float32"),
        tasks=[entry.task for entry in pack.tasks],
        task_manager=TaskManager(include_path=str(pack.tasks_path), include_defaults=False),
        samples={name: sorted(ids) for name, ids in evaluator.split.items(SEARCH).items()},
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
    )
    return results


@pytest.mark.parametrize("number", ["numpy.argmax(lls) == 0", "numpy.array(0.5)", "torch.tensor(True)"])
def test_a_number_of_numpy_or_torch_is_the_number_of_an_item(tmp_path: Path, model: Any, number: str) -> None:
    code = (
        f"import numpy, torch\ndef score(doc, results):\n lls = [r[0] for r in results]\n return {{'number': {number}}}"
    )
    task = {"process_results": "!function scoring.score", "metric_list": NUMBER}
    scores = evaluator_of(tmp_path / "pack", task, code).score(candidate(model), SEARCH).tasks["toy_pick"]
    assert set(scores.outcomes) <= {0.0, 0.5, 1.0}
    assert scores.value == pytest.approx(sum(scores.outcomes) / len(scores.outcomes))


GIVES_TWO = (
    "def pass_at_k(references, predictions, **_):\n return {'pass@1': float('e' in predictions[0]), 'pass@2': 1.0}\n"
)
WRITES = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [{"metric": "!function scoring.pass_at_k", "aggregation": "mean", "higher_is_better": True}],
}


def test_a_metric_that_a_function_of_the_task_gives_under_another_name_can_be_chosen(
    tmp_path: Path, model: Any
) -> None:
    evaluator = evaluator_of(tmp_path / "pack", WRITES, GIVES_TWO, "pass@1")
    evaluator.check_requests(model)
    scores = evaluator.score(candidate(model), SEARCH).tasks["toy_write"]
    texts = [evaluator.instances(SEARCH)["toy_write"][item][0].resps[0] for item in scores.items]
    assert scores.outcomes == tuple(float("e" in text) for text in texts)
    assert (scores.higher_is_better, scores.aggregate) == (True, "mean")


@pytest.mark.parametrize("metric", ["pass_at_k", "pass@3"])
def test_a_metric_that_the_function_does_not_give_is_refused_with_those_that_it_gives(
    tmp_path: Path, model: Any, metric: str
) -> None:
    evaluator = evaluator_of(tmp_path / "pack", WRITES, GIVES_TWO, metric)
    with pytest.raises(InvalidInput, match=r"metric among the results of task 'toy_write'.*pass@1"):
        evaluator.check_requests(model)


def test_a_held_out_item_that_code_leaves_without_the_metric_is_named_before_the_search(
    tmp_path: Path, model: Any
) -> None:
    code = "def score(doc, results):\n return {'number' if doc['part'] == 'search' else 'other': 1.0}\n"
    task = {"process_results": "!function scoring.score", "metric_list": NUMBER}
    evaluator = evaluator_of(tmp_path / "pack", task, code)
    item = min(evaluator.split.parts["held_out"]["toy_pick"])
    named = rf"^item {item}: .*metric among the results of task 'toy_pick'.*other"
    with pytest.raises(InvalidInput, match=named):
        evaluator.check_requests(model)
    with pytest.raises(InvalidInput, match=named):
        evaluator.score(candidate(model), ItemBlock("held_out"))


def test_code_that_changes_its_document_scores_the_same_candidate_the_same_twice_and_as_lm_eval(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def score(doc, results):\n doc['options'].append('x')\n return {'number': float(len(doc['options']))}\n"
    task = {"process_results": "!function scoring.score", "metric_list": NUMBER}
    evaluator = evaluator_of(tmp_path / "pack", task, code)
    evaluator.check_requests(model)
    first, again = (evaluator.score(candidate(model), SEARCH).tasks["toy_pick"] for _ in range(2))
    assert set(first.outcomes) == {5.0}
    assert first == again
    theirs = simple_evaluate(evaluator, model, monkeypatch)
    assert theirs["results"]["toy_pick"]["number,none"] == first.value


SHUFFLES = """
import random
from datasets import Dataset

def shuffled(documents):
    rows = list(documents)
    random.shuffle(rows)
    return Dataset.from_list(rows)
"""


def test_documents_that_are_drawn_at_random_are_the_same_at_every_access_and_in_every_process(tmp_path: Path) -> None:
    task = {"process_docs": "!function scoring.shuffled"}
    first = evaluator_of(tmp_path / "pack", task, SHUFFLES, "acc")
    for _ in range(2):
        documents = list(first.tasks["toy_pick"].eval_docs)
        for item, requests in first.prompts.part("search")["toy_pick"].items():
            assert requests[0].doc == documents[item]
    with generators_at(7):
        other = HarnessEvaluator(first.pack, make_tokenizer(), seed=3, split=first.split, allow=("task_code",))
    assert list(other.tasks["toy_pick"].eval_docs) == list(first.tasks["toy_pick"].eval_docs)
    assert [each["part"] for each in first.tasks["toy_pick"].eval_docs] != [
        each["part"] for each in documents_of_the_file(first)
    ], "the comparison must not be empty"


def documents_of_the_file(evaluator: HarnessEvaluator) -> list[dict[str, Any]]:
    lines = (evaluator.pack.folder / "items" / "all.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@contextmanager
def generators_at(seed: int) -> Iterator[None]:
    """The global generators in another state for a while."""
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    numpy.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


DRAWS = {
    "process_results": "def score(doc, results):\n return {'number': DRAWN}\n",
    "a metric": "def number(references, predictions, **_):\n return DRAWN\n",
    "a filter": (
        "def draw(responses, documents):\n return [str(DRAWN) for _ in responses]\n"
        "def score(doc, results):\n return {'number': float(results[0])}\n"
    ),
}


@pytest.mark.parametrize("drawn", ["random.random()", "numpy.random.random()", "torch.rand(()).item()"])
@pytest.mark.parametrize("where", DRAWS)
def test_n13_scores_that_draw_at_random_are_the_same_twice_and_leave_the_generators_alone(
    tmp_path: Path, model: Any, where: str, drawn: str
) -> None:
    code = "import numpy, random, torch\n" + DRAWS[where].replace("DRAWN", drawn)
    task = {"process_results": "!function scoring.score", "metric_list": NUMBER}
    if where == "a metric":
        task = {**WRITES, "metric_list": [{**NUMBER[0], "metric": "!function scoring.number"}]}
    if where == "a filter":
        drawing = {"function": "custom", "filter_fn": "!function scoring.draw"}
        task = {**WRITES, **task, "filter_list": [{"name": "drawn", "filter": [drawing]}]}
    evaluator = evaluator_of(tmp_path / "pack", task, code)
    first = evaluator.score(candidate(model), SEARCH)
    with generators_at(7):
        before = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
        again = evaluator.score(candidate(model), SEARCH)
        after = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    one = evaluator.score(candidate(model), ItemBlock("search", 1, 2))
    assert before == after
    assert again.tasks == first.tasks
    (name,) = first.tasks
    assert one.tasks[name].outcomes == first.tasks[name].outcomes[1:2]
