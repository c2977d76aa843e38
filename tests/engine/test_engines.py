"""Both engines keep the contract of engines, and an evaluator scores with the fake one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_pack import make_model, make_tokenizer, write_pack

from evomerge.engine.greedy import Reader, cut
from evomerge.engine.protocol import Engine, Loglikelihood, Pair, Prompt, Requests
from evomerge.engine.scripted import ScriptedEngine, Weights, scores_from, texts_from
from evomerge.engine.special_tokens import special_tokens
from evomerge.engine.transformers_engine import TransformersEngine
from evomerge.errors import InvalidInput
from evomerge.evaluation import ItemBlock, load_pack
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.testing.engine_contract import EngineContract
from evomerge.testing.evaluator_contract import candidate


def reader() -> Reader:
    tokenizer = make_tokenizer()
    return Reader(
        decode=lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        decode_all=lambda tokens: str(tokenizer.decode(tokens)),
        special=special_tokens(tokenizer),
    )


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in make_model(seed).state_dict().items()}


class TestTransformersEngine(EngineContract):
    settings: ClassVar[dict[str, Any]] = {}

    def build(self) -> Engine[Any]:
        model = make_model(2, **self.settings)
        return TransformersEngine(model, reader(), max_length=self.max_length, batch_size=8)

    def weights(self) -> tuple[Weights, Weights]:
        return weights_of(0), weights_of(1)

    def broken(self) -> Weights:
        return {"lm_head.weight": torch.full_like(weights_of(0)["lm_head.weight"], float("nan"))}


class TestTransformersEngineWithStateBetweenPasses(TestTransformersEngine):
    """Dynamic rotary embeddings: no prefixes are shared, no batch is padded, and frequencies are put back."""

    settings: ClassVar[dict[str, Any]] = {
        "max_position_embeddings": 8,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    }


def score(weights: Weights, pair: Pair) -> Loglikelihood:
    """Twice as likely as the others is the token after the last one; the scale spreads what is left."""
    context, continuation = pair
    likely = [token == before + 1 for before, token in zip([context[-1], *continuation], continuation, strict=False)]
    scale = float(weights["scale"])
    return sum(math.log(0.25 / scale if hit else 0.1 / scale) for hit in likely), all(likely)


def write(weights: Weights, prompt: Prompt) -> str:
    return cut("abc" * len(prompt.tokens), prompt.stops)


class TestScriptedEngine(EngineContract):
    def build(self) -> Engine[Any]:
        return ScriptedEngine(score, write, max_length=self.max_length)

    def weights(self) -> tuple[Weights, Weights]:
        return {"scale": torch.tensor(1.0)}, {"scale": torch.tensor(2.0)}

    def broken(self) -> Weights:
        return {"scale": torch.tensor(float("nan"))}


def test_a_script_can_be_a_table_and_names_what_it_lacks() -> None:
    engine = ScriptedEngine(scores_from({((3,), (5,)): (-1.25, False)}), texts_from({(3, 5): "text"}))
    requests = Requests([([3], [5])], [Prompt(tokens=(3, 5), limit=4, stops=())])
    responses = engine.run(engine.prepare(requests, requests.lengths(16)))
    assert list(responses.loglikelihoods) == [(-1.25, False)]
    assert list(responses.texts) == ["text"]
    for missing in (Requests([([3], [6])]), Requests([], [Prompt(tokens=(4,), limit=4, stops=())])):
        with pytest.raises(InvalidInput, match="add a row to its table"):
            engine.run(engine.prepare(missing, missing.lengths(16)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lm_haed.weight": torch.zeros(3)}, "did you mean 'lm_head.weight'"),
        ({"lm_head.weight": torch.zeros(3)}, r"has the shape \[3\], that of the model has \[\d+, 32\]"),
    ],
)
def test_weights_of_another_architecture_are_refused_and_change_nothing(weights: Weights, message: str) -> None:
    model = make_model(0)
    engine = TransformersEngine(model, reader(), max_length=64, batch_size=8)
    with pytest.raises(InvalidInput, match=message):
        engine.load({"model.norm.weight": torch.zeros(32), **weights})
    assert torch.equal(model.model.norm.weight, make_model(0).model.norm.weight)


def test_an_evaluator_scores_what_a_scripted_engine_answers(tmp_path: Path) -> None:
    pack = load_pack(write_pack(tmp_path / "pack"))
    engine = ScriptedEngine(lambda _, pair: (-float(len(pair[1])), True), lambda _, prompt: "m")
    evaluator = HarnessEvaluator(pack, make_tokenizer(), seed=3, batch_size=8, engine=lambda lm: engine)
    scores = evaluator.score(candidate(make_model(0)), ItemBlock("search")).tasks
    requests = evaluator.instances(ItemBlock("search"))["toy_last"]
    lengths = {item: len(instances[0].args[1]) for item, instances in requests.items()}
    assert scores["toy_last"].outcomes == tuple(-float(lengths[item]) for item in scores["toy_last"].items)
    assert set(scores["toy_write"].outcomes) == {0.0, 1.0}, "half of the items ask for an m"
