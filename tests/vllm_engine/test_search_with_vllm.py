"""A pack whose spec names vLLM: what is scored through the fake is what is scored with transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from opened import write_base
from tiny_pack import make_model, write_pack

from evomerge import load_spec
from evomerge.cli import run_command
from evomerge.errors import InvalidInput
from evomerge.evaluation import ItemBlock
from evomerge.evaluation.factory import build_evaluator
from evomerge.leaderboard import leaderboard
from evomerge.recipe import ModelRef
from evomerge.study.stored_search import read_search
from evomerge.testing.evaluator_contract import candidate

TOY_SKILLS = Path(__file__).parents[2] / "evaluators" / "toy-skills"
TASKS = ("toy_reverse", "toy_count", "toy_pick")  # texts, multiple choice, log-likelihoods
WRITES = {"task": "toy_write", "metric": "exact_match"}
VLLM = {"engine": "vllm", "engine_args": {"gpu_memory_utilization": 0.4, "enforce_eager": True}}


@pytest.fixture
def few_items(tmp_path: Path) -> str:
    """Toy skills with a task of each kind and six items on each part."""
    folder = tmp_path / "few"
    shutil.copytree(TOY_SKILLS, folder)
    content = yaml.safe_load((folder / "evaluator.yaml").read_text(encoding="utf-8"))
    content["tasks"] = [task for task in content["tasks"] if task["task"] in TASKS]
    (folder / "evaluator.yaml").write_text(yaml.safe_dump({**content, "name": "few"}), encoding="utf-8")
    for items in (folder / "items").iterdir():
        lines, left = [], {"calibration": 2, "search": 6, "held_out": 6}
        for line in items.read_text(encoding="utf-8").splitlines(keepends=True):
            part = json.loads(line)["part"]
            left[part] -= 1
            lines += [line] * (left[part] >= 0)
        items.write_text("".join(lines), encoding="utf-8")
    return str(folder)


def test_a_search_scores_with_vllm_what_it_scores_with_transformers(
    fake_vllm: Any, few_items: str, write_spec: Callable[..., Path]
) -> None:
    rows = []
    fake_vllm.LLM.started = 0
    for name, engine in (("plain", {}), ("fast", VLLM)):
        changes = {
            "evaluator": {"name": few_items, **engine},
            "budget": {"trials": 2},
            "dtype": "float32",
            "baselines": [],
        }
        spec = write_spec(f"{name}.yaml", name=name, **changes)
        assert run_command(["run", str(spec), "--ray", "none"]) == 0
        lines = leaderboard(read_search(load_spec(spec)))
        rows.append([(line.label, line.recipe, line.search, line.held_out) for line in lines])
    plain, fast = rows
    assert fake_vllm.LLM.started == 1
    assert [row[:2] for row in fast] == [row[:2] for row in plain]
    assert len({row[1] for row in fast}) >= 4
    for (_, _, *ours), (_, _, *theirs) in zip(fast, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            assert one is None or one.value == pytest.approx(other.value, abs=1e-4)


def test_n41_a_search_whose_engine_keeps_stale_weights_ends_before_its_first_score(
    fake_vllm: Any, few_items: str, write_spec: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_vllm.FAULTS.add("stale")
    evaluator = {"name": few_items, **VLLM}
    spec = write_spec(evaluator=evaluator, budget={"trials": 3}, dtype="float32")
    assert run_command(["run", str(spec), "--ray", "none"]) == 2
    assert "vLLM scores stale weights" in capsys.readouterr().err.replace("\n", " ")
    assert [trial for trial in read_search(load_spec(spec)).study.trials if trial.state.name == "COMPLETE"] == []


def test_check_says_how_to_install_vllm(
    few_items: str, write_spec: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.vllm_engine.engine_settings.find_spec", lambda name: None)
    spec = write_spec(evaluator={"name": few_items, "engine": "vllm"})
    assert run_command(["check", str(spec)]) == 2
    assert "pip install 'evomerge[vllm]'" in capsys.readouterr().err.replace("\n", " ")


def test_layer_paths_are_refused_by_check(
    fake_vllm: Any, few_items: str, write_spec: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(evaluator={"name": few_items, **VLLM}, space="layer-path", dtype="float32")
    assert run_command(["check", str(spec)]) == 2
    assert "engine vllm holds a model of one depth" in capsys.readouterr().err.replace("\n", " ")


def test_held_out_items_that_vllm_cannot_hold_are_refused_before_the_first_score(
    fake_vllm: Any, tmp_path: Path
) -> None:
    base, pack = write_base(tmp_path / "base"), write_pack(tmp_path / "pack", {"tasks": [WRITES]})
    items = pack / "items" / "all.jsonl"
    documents = [json.loads(line) for line in items.read_text(encoding="utf-8").splitlines()]
    for each in documents:
        each["word"] *= 20 if each["part"] == "held_out" else 1
    items.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
    settings = {**VLLM, "engine_args": {"max_model_len": 60}}
    evaluator = build_evaluator(str(pack), base=ModelRef("base", str(base)), seed=3, batch_size=8, settings=settings)
    with pytest.raises(InvalidInput, match=r"holds 60 of both \(max_model_len\)"):
        evaluator.score(candidate(make_model(1)), ItemBlock("search"))


def test_every_kind_of_request_has_the_outcomes_that_it_has_with_transformers(fake_vllm: Any, tmp_path: Path) -> None:
    base, pack = write_base(tmp_path / "base"), write_pack(tmp_path / "pack")
    scores = [
        build_evaluator(str(pack), base=ModelRef("base", str(base)), seed=3, batch_size=8, settings=settings)
        .score(candidate(make_model(1)), ItemBlock("search"))
        .tasks
        for settings in (VLLM, {})
    ]
    assert scores[0].keys() == {"toy_pick", "toy_letter", "toy_write", "toy_last", "toy_read"}
    for task, theirs in scores[1].items():
        assert scores[0][task].outcomes == pytest.approx(theirs.outcomes, rel=1e-4, abs=1e-4)
        assert scores[0][task].value == pytest.approx(theirs.value, rel=1e-4)
