"""The contract of engines with vLLM itself, wherever it and a GPU are there: `pip install 'evomerge[vllm,testing]'`."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LLAMA, build
from opened import open_engine, write_base

from evomerge.engine.protocol import Engine
from evomerge.testing.engine_contract import EngineContract, Weights

WITHOUT = "vLLM is not installed here" if find_spec("vllm") is None else "there is no CUDA GPU here"
HERE = find_spec("vllm") is not None and torch.cuda.is_available()
NOT_RUN = f"NOT RUN: {WITHOUT}; evomerge's engine over vLLM was held against a fake of its API only"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason=NOT_RUN)]

ALLOWED = {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_BATCH_INVARIANT": "1"}
MODEL = {
    **LLAMA,
    "vocab_size": 43,
    "hidden_size": 256,
    "head_dim": 64,
    "max_position_embeddings": 256,
}  # heads that vLLM has
RECORDED = json.loads((Path(__file__).parent / "recorded_api.json").read_text(encoding="utf-8"))


def model_of(seed: int) -> Any:
    return build("LlamaConfig", MODEL, seed)


def weights_of(seed: int) -> Weights:
    return dict(model_of(seed).state_dict())


@pytest.fixture(scope="module")
def engine_of_module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One engine for all tests, whose process takes a minute to start."""
    os.environ.update(ALLOWED)
    folder = write_base(tmp_path_factory.mktemp("vllm") / "base", model_of(0))
    return open_engine(folder, model_of(0).to("cuda"), gpu_memory_utilization=0.3, enforce_eager=True)


class TestWithVllm(EngineContract):
    @pytest.fixture(autouse=True)
    def _one_engine(self, engine_of_module: Any) -> None:
        self._engine = engine_of_module

    def build(self) -> Engine[Any]:
        return self._engine

    def weights(self) -> tuple[Weights, Weights]:
        return weights_of(0), weights_of(1)

    def broken(self) -> Weights:
        return {"lm_head.weight": torch.full_like(weights_of(0)["lm_head.weight"], float("nan"))}


def test_vllm_has_the_parameters_that_were_recorded() -> None:
    for name, parameters in RECORDED["parameters"].items():
        module, _, rest = name.partition(".LLM")
        found: Any = importlib.import_module(module) if rest else None
        if found is None:
            continue
        for part in f"LLM{rest}".split("."):
            found = getattr(found, part)
        assert set(parameters) - {"**"} <= set(inspect.signature(found).parameters)
