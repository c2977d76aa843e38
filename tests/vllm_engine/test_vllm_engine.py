"""vLLM as an engine, held against a fake of its API: the contract of engines, requests and answers, the self-check."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import LLAMA
from opened import View, open_engine, reader, weights_of, write_base
from tiny_pack import make_model

from evomerge.engine.live_state import LiveState
from evomerge.engine.protocol import Engine, Lengths, Pair, Prompt, Requests, Unwritten
from evomerge.engine.transformers_engine import TransformersEngine
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef
from evomerge.testing.engine_contract import EngineContract, Weights

RECORDED = json.loads((Path(__file__).parent / "recorded_api.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("vllm") / "base")


class TestVllmEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _fake(self, fake_vllm: Any, base: Path) -> None:
        self.folder = base

    def build(self) -> Engine[Any]:
        return open_engine(self.folder, make_model(2), max_length=self.max_length)

    def weights(self) -> tuple[Weights, Weights]:
        return weights_of(0), weights_of(1)

    def broken(self) -> Weights:
        return {"lm_head.weight": torch.full_like(weights_of(0)["lm_head.weight"], float("nan"))}


def both(folder: Path, model: Any, requests: Requests, max_length: int = 64) -> tuple[Any, Any]:
    """The answers of vLLM and of transformers."""
    found = []
    theirs = TransformersEngine(model, reader(), max_length=max_length, batch_size=8)
    for engine in (open_engine(folder, model, max_length=max_length), theirs):
        engine.load({})
        found.append(engine.run(engine.prepare(requests, requests.lengths(max_length))))
    return found[0], found[1]


def test_log_likelihoods_and_greedy_flags_are_those_of_transformers(fake_vllm: Any, base: Path) -> None:
    likely = _greedy_pair(base)
    pairs: list[Pair] = [([5, 6, 7], [8]), ([5, 6, 7], [9, 10]), ([5, 6, 7, 9], [10]), likely, ([11] * 70, [5, 6])]
    ours, theirs = both(base, make_model(0), Requests(pairs))
    assert [value for value, _ in ours.loglikelihoods] == pytest.approx([v for v, _ in theirs.loglikelihoods], abs=1e-4)
    assert [flag for _, flag in ours.loglikelihoods] == [flag for _, flag in theirs.loglikelihoods]
    assert {flag for _, flag in ours.loglikelihoods} == {True, False}


def _greedy_pair(base: Path) -> Pair:
    """A context with the two tokens that greedy decoding writes behind it."""
    model, tokens = make_model(0), [5, 6, 7]
    for _ in range(2):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[:3], tokens[3:]


@pytest.mark.parametrize("stops", [(), ("a",), ("</s>", "e", "n"), ("b?", "ab"), ("ab",)])
def test_texts_are_those_of_transformers(fake_vllm: Any, base: Path, stops: tuple[str, ...]) -> None:
    prompts = [Prompt(tokens=tuple(range(4, 4 + n)), limit=12, stops=stops) for n in (1, 5, 17, 33)]
    for seed in (0, 1):
        ours, theirs = both(base, make_model(seed), Requests([], prompts))
        assert [text for text, other in zip(ours.texts, theirs.texts, strict=True) if text != other] == []
        assert any(ours.texts)


def test_a_text_that_vllm_ends_elsewhere_than_lm_eval_is_left_to_the_evaluator(fake_vllm: Any, base: Path) -> None:
    engine = open_engine(base, make_model(0))
    requests = Requests([], [Prompt(tokens=(5, 6, 7), limit=8, stops=("zz",))])
    prepared = engine.prepare(requests, requests.lengths(64))
    stop = fake_vllm.LLM.latest._stopped
    fake_vllm.LLM.latest._stopped = lambda written, params: ("", "zz") if written else stop(written, params)
    (text,) = engine.run(prepared).texts
    assert isinstance(text, Unwritten)


def test_a_candidate_is_one_update_and_one_reset_and_starts_nothing(fake_vllm: Any, base: Path) -> None:
    fake_vllm.LLM.started = 0
    engine = open_engine(base, make_model(0))
    requests = Requests([([5, 6], [7]), ([5, 6], [8])], [Prompt(tokens=(5, 6), limit=4, stops=())])
    prepared = engine.prepare(requests, requests.lengths(64))
    llm = fake_vllm.LLM.latest
    before = dict(llm.calls)
    for seed in (1, 2, 3):
        engine.load(weights_of(seed))
        engine.run(prepared)
    calls = {name: count - before[name] for name, count in llm.calls.items()}
    assert calls == {"init": 0, "start": 3, "update": 3, "finish": 3, "reset": 3, "generate": 6}
    assert (fake_vllm.LLM.started, before["init"]) == (1, 1)


def test_a_tensor_larger_than_the_buffer_and_many_chunks_arrive(
    fake_vllm: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = importlib.import_module("evomerge.vllm_engine.weight_sender")
    monkeypatch.setattr(sender, "BUFFER", 1000)
    ours, theirs = both(base, make_model(1), Requests([([5, 6], [7])]))
    assert ours.loglikelihoods[0][0] == pytest.approx(theirs.loglikelihoods[0][0], abs=1e-4)
    assert fake_vllm.LLM.latest.calls["update"] > 2 * fake_vllm.LLM.latest.calls["finish"]


def test_tied_heads_and_experts_that_transformers_stacks_arrive_as_they_are_stored(
    fake_vllm: Any, tmp_path: Path
) -> None:
    settings = {**LLAMA, "vocab_size": 43, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(**settings, max_position_embeddings=128, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.MixtralForCausalLM(config).eval()
    folder = write_base(tmp_path / "mixtral", model)
    ours, theirs = both(folder, model, Requests([([5, 6, 7], [8, 9])]))
    assert ours.loglikelihoods[0][0] == pytest.approx(theirs.loglikelihoods[0][0], abs=1e-4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stale", "vLLM scores stale weights after new ones were given to it"),
        ("stale head", "scores stale weights in part after new ones were given to it"),
        ("keeps cache", "keeps earlier weights' keys and values in its prefix cache"),
        ("refuses reset", "vLLM did not reset its prefix cache after new weights"),
    ],
)
def test_n41_stale_weights_and_stale_caches_are_found_before_the_first_batch(
    fake_vllm: Any, base: Path, fault: str, message: str
) -> None:
    fake_vllm.FAULTS.add(fault)
    engine = open_engine(base, make_model(0))
    requests = Requests([([5, 6], [7])])
    with pytest.raises(InvalidInput, match=message):
        engine.prepare(requests, requests.lengths(64))


def test_n41_a_self_check_that_failed_is_made_again(fake_vllm: Any, base: Path) -> None:
    engine = open_engine(base, make_model(0))
    requests = Requests([([5, 6], [7])])
    fake_vllm.FAULTS.add("keeps cache")
    for _ in range(2):
        with pytest.raises(InvalidInput, match="prefix cache"):
            engine.prepare(requests, requests.lengths(64))


def test_n41_a_cache_that_is_switched_off_passes(fake_vllm: Any, base: Path) -> None:
    fake_vllm.FAULTS.add("keeps cache")
    engine = open_engine(base, make_model(0), enable_prefix_caching=False)
    requests = Requests([([5, 6], [7])])
    assert engine.prepare(requests, requests.lengths(64)) is not None  # raises where the check fails


def test_n17_the_self_check_leaves_the_weights_of_the_live_model_as_they_were(fake_vllm: Any, base: Path) -> None:
    model = make_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = open_engine(base, model)
    engine.prepare(Requests(), Lengths(frozenset(), frozenset()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    theirs = fake_vllm.LLM.latest._model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in before.items())


def test_a_request_that_vllm_cannot_hold_is_refused_with_the_length_that_it_can(fake_vllm: Any, base: Path) -> None:
    engine = open_engine(base, make_model(0), max_length=256)
    requests = Requests([([5] * 256, [6])])
    with pytest.raises(InvalidInput, match="set max_length of the evaluator to 254 or less"):
        engine.prepare(requests, requests.lengths(256))
    shorter = Requests([([5] * 300, [6])])
    engine = open_engine(base, make_model(0), max_length=254)
    assert engine.run(engine.prepare(shorter, shorter.lengths(254))).loglikelihoods


def test_a_text_that_vllm_would_end_for_want_of_room_is_refused_with_both_bounds(fake_vllm: Any, base: Path) -> None:
    engine = open_engine(base, make_model(0), max_length=256, max_model_len=64)
    long, fits = (Prompt(tokens=tuple(range(4, 4 + count)), limit=32, stops=()) for count in (33, 32))
    requests = Requests([], [long])
    refused = r"33 tokens and its text up to 32 \(max_gen_toks\).* holds 64 of both \(max_model_len\).*to 64 or less"
    with pytest.raises(InvalidInput, match=refused):
        engine.prepare(requests, requests.lengths(256))
    left = Requests([], [fits, replace(long, plain=False)])
    written, unwritten = engine.run(engine.prepare(left, left.lengths(256))).texts
    assert isinstance(written, str)
    assert isinstance(unwritten, Unwritten)


def test_vllm_that_does_not_start_is_an_error_of_the_input(
    fake_vllm: Any, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"vLLM cannot be started.*no_such_argument.*change engine_args"):
        open_engine(base, make_model(0), no_such_argument=1)
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION")
    with pytest.raises(InvalidInput, match="VLLM_ALLOW_INSECURE_SERIALIZATION=1 is set"):
        open_engine(base, make_model(0))


def test_another_depth_is_refused_and_another_live_model_of_the_same_shares_the_started_vllm(
    fake_vllm: Any, base: Path
) -> None:
    from evomerge.vllm_engine.engine_opener import VllmOpener

    fake_vllm.LLM.started = 0
    opener = VllmOpener(ModelRef("base", str(base)), {})
    requests = Requests([([5, 6], [7])])
    values = []
    for seed in (0, 1):
        model = make_model(seed)
        engine = opener(View(model=model, reader=reader(), state=LiveState(model), max_length=64))
        engine.load({})
        values += engine.run(engine.prepare(requests, requests.lengths(64))).loglikelihoods
    assert values[0] != values[1]
    assert fake_vllm.LLM.started == 1
    deeper = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, "num_hidden_layers": 3}))
    with pytest.raises(InvalidInput, match="a candidate has 3 layers and the base has 2"):
        opener(View(model=deeper, reader=reader(), state=LiveState(deeper), max_length=64))


def test_the_fake_has_no_name_or_parameter_that_vllm_has_not(fake_vllm: Any) -> None:
    for name, parameters in RECORDED["parameters"].items():
        if name == "vllm.EngineArgs":
            continue
        known = set(parameters) | (set(RECORDED["parameters"]["vllm.EngineArgs"]) if "**" in parameters else set())
        found = set(inspect.signature(_named(name)).parameters) - {"self"}
        assert found <= known, name
    for name, fields in RECORDED["attributes"].items():
        assert set(getattr(fake_vllm, name.split(".")[-1]).__dataclass_fields__) <= set(fields)


def _named(name: str) -> Any:
    import vllm.config
    import vllm.distributed.weight_transfer.ipc_engine

    found: Any = vllm
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found
