"""The engine of a pack in a spec: known names, arguments that are the user's, and an extra that is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_pack import make_model, make_tokenizer, write_pack

from evomerge.errors import InvalidInput
from evomerge.evaluation import load_pack
from evomerge.evaluation.factory import build_evaluator
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.recipe import ModelRef
from evomerge.vllm_engine.engine_settings import REFUSED, EngineSettings, engine_settings, gpu_share


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "vlm"}, "unknown engine 'vlm'; did you mean 'vllm'"),
        ({"engine": "sglang"}, "unknown engine 'sglang'"),
        ({"engine_args": {"enforce_eager": True}}, "engine transformers takes no arguments; write engine: vllm"),
        ({"engine": "vllm", "engine_args": {"dtype": "half"}}, "dtype cannot be given: it follows from sources, dtype"),
        ({"engine": "vllm", "engine_args": {"quantization": "fp8"}}, "what is scored would not be what is exported"),
        ({"engine": "vllm", "engine_args": {"tensor_parallel_size": 2}}, "give more workers instead"),
        ({"engine": "vllm", "engine_arg": {}}, "takes no settings but engine and engine_args, but the spec gives"),
        ({"engine": 3}, "engine: Input should be a valid string"),
    ],
)
def test_what_cannot_be_an_engine_is_refused(fake_vllm: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        engine_settings("toy", settings)


def test_vllm_that_is_not_installed_is_refused_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import evomerge.vllm_engine.engine_settings as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install 'evomerge\[vllm\]'"):
        engine_settings("toy", {"engine": "vllm"})
    assert engine_settings("toy", {"engine": "transformers"}) == EngineSettings()


def test_scores_of_another_engine_are_of_another_study_and_memory_is_not(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path / "pack"))

    def fingerprint(**settings: Any) -> str:
        identity = EngineSettings(**settings).identity
        return HarnessEvaluator(pack, make_tokenizer(), seed=3, engine_identity=identity).fingerprint

    plain = HarnessEvaluator(pack, make_tokenizer(), seed=3).fingerprint
    vllm = fingerprint(engine="vllm")
    assert plain == fingerprint(engine="transformers")
    assert vllm not in (plain, fingerprint(engine="vllm", engine_args={"enforce_eager": True}))
    assert vllm == fingerprint(engine="vllm", engine_args={"gpu_memory_utilization": 0.4})


def test_a_pack_is_built_with_the_engine_of_its_settings(fake_vllm: Any, tmp_path: Path) -> None:
    base, pack = tmp_path / "base", write_pack(tmp_path / "pack")
    make_model(0).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    arguments = {"gpu_memory_utilization": 0.4}
    settings = {"engine": "vllm", "engine_args": arguments}
    evaluator = build_evaluator(str(pack), base=ModelRef("base", str(base)), seed=1, settings=settings)
    assert evaluator._open_engine._arguments == arguments


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.0),
        ({"engine": "transformers"}, 0.0),
        ({"engine": "vllm"}, 0.92),
        ({"engine": "vllm", "engine_args": {"gpu_memory_utilization": 0.4}}, 0.4),
    ],
)
def test_what_vllm_takes_of_a_gpu_is_known_beforehand(settings: dict[str, Any], share: float) -> None:
    assert gpu_share(settings) == share


def test_every_argument_that_is_refused_is_one_of_vllm() -> None:
    recorded = json.loads((Path(__file__).parent / "recorded_api.json").read_text(encoding="utf-8"))
    assert set(REFUSED) <= set(recorded["parameters"]["vllm.EngineArgs"])
