from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from models import GPT2, LLAMA, build
from tiny_pack import WORDS, make_model, make_tokenizer
from tokenizers import AddedToken

from evomerge.engine.greedy import GreedyTexts, _overlap, cut, is_plain_greedy
from evomerge.errors import InvalidInput, MergeError
from evomerge.evaluation.lm_eval.cached_tokenizer import CachedTokenizer
from evomerge.evaluation.lm_eval.encoding import encode
from evomerge.evaluation.lm_eval.harness_evaluator import transformers_engine
from evomerge.evaluation.lm_eval.model import PreparedLM

PLAIN = {"until": ["\n", "e"], "max_gen_toks": 8, "do_sample": False}


def instances(settings: dict[str, Any], count: int = 30, shots: int = 0) -> list[Instance]:
    rng = random.Random(0)
    examples = "".join(f"write {rng.choice(WORDS)}: {rng.choice(WORDS)}\n" for _ in range(shots))
    prompts = [f"{examples}write {' '.join(rng.choices(WORDS, k=rng.randint(1, 4)))}:" for _ in range(count)]
    return [
        Instance("generate_until", {}, (prompt, dict(settings)), number, ("task", number, 1))
        for number, prompt in enumerate(prompts)
    ]


def writer(
    model: Any, requests: list[Instance], tokenizer: Any | None = None, **options: Any
) -> Callable[[], list[str]]:
    """Our own way of writing the texts of requests, prepared."""
    cached = CachedTokenizer(tokenizer or make_tokenizer())
    lm = PreparedLM(model, cached, **{"max_length": None, "batch_size": 8, **options})
    wanted = {"task": dict(enumerate([request] for request in requests))}
    encoded, engine = encode(lm, wanted), transformers_engine(lm)
    prepared = engine.prepare(encoded.requests, encoded.requests.lengths(lm.max_length))

    def write() -> list[str]:
        encoded.answer(lm, engine.run(prepared))
        return [request.resps[0] for request in requests]

    return write


def ours(model: Any, requests: list[Instance], **options: Any) -> list[str]:
    return writer(model, requests, **options)()


def theirs(model: Any, requests: list[Instance], tokenizer: Any | None = None, **options: Any) -> list[str]:
    lm = HFLM(pretrained=model, tokenizer=tokenizer or make_tokenizer(), **{"batch_size": 8, **options})
    return list(lm.generate_until(requests, disable_tqdm=True))


@pytest.fixture
def writes_itself(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether our own loop wrote something."""
    called: list[bool] = []
    run = GreedyTexts.by_passes
    monkeypatch.setattr(GreedyTexts, "by_passes", lambda self, *given: called.append(True) or run(self, *given))
    return called


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        {"until": ["\n\n"], "max_gen_toks": 20},
        {"until": [], "max_gen_toks": 5, "temperature": 0.0},
        {"until": "a", "max_new_tokens": 12, "do_sample": False},
        {"until": ["ab", "b1", "1"], "max_gen_toks": 30},
        {"max_gen_toks": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_texts_are_those_of_lm_eval(settings: dict[str, Any], shots: int, seed: int, writes_itself: list[bool]) -> None:
    model = make_model(seed)
    requests = instances(settings, shots=shots)
    found = ours(model, requests)
    assert writes_itself
    assert found == theirs(model, requests, batch_size=1)
    assert len(set(found)) > 3, "the comparison must not be empty"


def test_a_text_that_lm_eval_lets_depend_on_its_batch_is_what_a_batch_of_one_gives(writes_itself: list[bool]) -> None:
    """The model writes <pad>, in the name of which lm-eval finds the stop string."""
    model = make_model(0)
    requests = instances({"until": "a", "max_gen_toks": 12}, shots=5)
    found = {size: ours(model, requests, batch_size=size) for size in (1, 8)}
    assert writes_itself
    assert found[8] == found[1] == theirs(model, requests, batch_size=1)
    assert found[8] != theirs(model, requests, batch_size=8)


def tokenizer_with_special(token: str) -> Any:
    """The tiny tokenizer with a token that is special without a role, as "<|eot_id|>" is in many chat models."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True)])
    return tokenizer


def test_a_stop_string_that_is_a_special_token_without_a_role_ends_a_text_at_once(writes_itself: list[bool]) -> None:
    model, tokenizer = make_model(0), tokenizer_with_special("m")
    assert tokenizer.convert_tokens_to_ids("m") not in tokenizer.all_special_ids
    requests = instances({"until": ["m"], "max_gen_toks": 40})
    rows: list[int] = []
    write = writer(model, requests, tokenizer)
    model.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    found = write()
    assert sum(rows) < 30 * 40
    assert found == theirs(model, requests, tokenizer, batch_size=1)
    assert writes_itself
    assert len(set(map(len, found))) > 3


def test_a_stop_string_across_the_end_of_a_special_token_ends_a_text_as_in_lm_eval() -> None:
    tokenizer = tokenizer_with_special("m")
    for seed in (0, 1):
        model = make_model(seed)
        free = instances({"until": [], "max_gen_toks": 20})
        whole = [text for text in ours(model, free) if "m" in text[:-1]]
        behind = {text[text.index("m") : text.index("m") + 2] for text in whole}
        assert behind
        for stop in sorted(behind):
            requests = instances({"until": [stop], "max_gen_toks": 20})
            assert ours(model, requests, tokenizer=tokenizer) == theirs(model, requests, tokenizer, batch_size=1)


def test_texts_that_the_model_ends_itself_are_those_of_lm_eval(writes_itself: list[bool]) -> None:
    model = make_model(0)
    with torch.no_grad():
        model.lm_head.weight[2] = model.lm_head.weight[16] * 1.05  # instead of every "m"
    requests = instances({"until": [], "max_gen_toks": 40})
    found = ours(model, requests)
    assert found == theirs(model, requests)
    assert writes_itself
    assert len(set(map(len, found))) > 3


HOLDING_24_TOKENS = {
    "Llama": ("LlamaConfig", {**LLAMA, "max_position_embeddings": 24}),
    "GPT-2": ("GPT2Config", {**GPT2, "n_positions": 24}),
    "GPT-J": ("GPTJConfig", {**GPT2, "n_positions": 24, "rotary_dim": 4}),
    "OPT": ("OPTConfig", {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 24}),
}


@pytest.mark.parametrize("name", HOLDING_24_TOKENS)
def test_long_prompts_are_cut_on_the_left_as_lm_eval_cuts_them(name: str, writes_itself: list[bool]) -> None:
    """Also where the model has positions for no token more than its prompt and what it may write."""
    config, settings = HOLDING_24_TOKENS[name]
    model = build(config, {**settings, "vocab_size": 46})
    requests = instances(PLAIN, shots=2)
    assert ours(model, requests, max_length=24) == theirs(model, requests, max_length=24)
    assert writes_itself


def test_equal_prompts_and_single_ones_are_written_too() -> None:
    model = make_model(0)
    requests = [*instances(PLAIN, 2), *instances(PLAIN, 2)]
    assert ours(model, requests) == theirs(model, requests)
    assert ours(model, requests[:1]) == theirs(model, requests[:1])


def test_tasks_with_other_limits_and_stop_strings_share_batches() -> None:
    model = make_model(0)
    long = {"until": ["x"], "max_gen_toks": 25}
    requests = [*instances(PLAIN, 10), *instances(long, 10)]
    assert ours(model, requests) == [*theirs(model, requests[:10]), *theirs(model, requests[10:])]


@pytest.mark.parametrize("extra", [{"num_beams": 2}, {"repetition_penalty": 1.5}, {"min_new_tokens": 4}])
def test_settings_that_change_what_is_written_are_left_to_lm_eval(
    extra: dict[str, Any], writes_itself: list[bool]
) -> None:
    model = make_model(0)
    requests = instances({**PLAIN, **extra})
    assert ours(model, requests) == theirs(model, requests)
    assert not writes_itself


def test_settings_of_the_model_that_change_what_is_written_are_left_to_lm_eval(writes_itself: list[bool]) -> None:
    model = make_model(0)
    assert is_plain_greedy(model)
    model.generation_config.repetition_penalty = 1.3
    assert not is_plain_greedy(model)
    requests = instances(PLAIN)
    assert ours(model, requests) == theirs(model, requests)
    assert not writes_itself


def test_a_model_that_ends_texts_elsewhere_than_its_tokenizer_is_left_to_lm_eval(writes_itself: list[bool]) -> None:
    model = make_model(0)
    model.generation_config.eos_token_id = 7
    ours(model, instances(PLAIN))
    assert not writes_itself


def test_a_limit_that_leaves_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(InvalidInput, match="task 'task', item 0: the model may write 300 tokens"):
        ours(make_model(0), instances({**PLAIN, "max_gen_toks": 300}))


TINY = {**LLAMA, "vocab_size": 46, "tie_word_embeddings": False}
SEEING_THEIR_BATCH = {
    "a limit that counts padding": ("LlamaConfig", {"max_length": 30, "max_gen_toks": 28}),
    "beams": ("LlamaConfig", {"num_beams": 2, "max_gen_toks": 12, "until": ["a", "b", "c", "d"]}),
    "a stop string that is a special token": ("BloomConfig", {"until": ["c"], "max_gen_toks": 20}),
}


@pytest.mark.parametrize("name", SEEING_THEIR_BATCH)
def test_a_text_that_is_left_to_lm_eval_does_not_depend_on_the_others(name: str, writes_itself: list[bool]) -> None:
    config, settings = SEEING_THEIR_BATCH[name]
    model, tokenizer = build(config, TINY), tokenizer_with_special("c")
    requests = instances({**settings, "do_sample": False}, count=12)
    together = ours(model, requests, tokenizer=tokenizer)
    assert not writes_itself
    assert together == [ours(model, [request], tokenizer=tokenizer)[0] for request in requests]
    assert together == theirs(model, requests, tokenizer, batch_size=1)
    assert together != theirs(model, requests, tokenizer, batch_size=8), "the comparison must not be empty"


def test_finished_rows_leave_their_batch() -> None:
    model = make_model(0)
    rows: list[int] = []
    write = writer(model, instances({"until": list("abcdefghijklm"), "max_gen_toks": 60}))
    model.lm_head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    write()
    assert rows[0] > rows[-1]
    assert sum(rows) < 60 * len(rows)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = make_model(0)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(MergeError, match="not numbers"):
        ours(model, instances(PLAIN))


def test_overlapping_stop_strings_are_noticed() -> None:
    assert cut("cab?", ["b?", "ab"]) == "ca"
    assert cut("cab", ["b?", "ab"]) == "c"
    assert _overlap(["b?", "ab"])
    assert _overlap(["\n\n", "\nq"])
    assert _overlap(["xaby", "ab"])
    assert not _overlap(["\n\n", "\n", "</s>"])
    assert not _overlap(["question:", "answer:"])
