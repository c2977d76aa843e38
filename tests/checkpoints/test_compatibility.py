from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel

from evomerge.checkpoints import Source, check_compatible, compatibility, open_source
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef


def _lines(base: Source, *experts: Source) -> list[str]:
    with pytest.raises(InvalidInput) as raised:
        check_compatible(base, experts)
    return str(raised.value).splitlines()[1:]


def _tokenizer(
    directory: Path,
    tokens: dict[str, int] | list[list[Any]],
    special: tuple[str, ...] = (),
    **settings: Any,
) -> None:
    """A fast tokenizer of whole words, or of pieces where `tokens` are pairs with scores."""
    of_pieces = isinstance(tokens, list)
    model: Any = Unigram([(token, score) for token, score in tokens]) if of_pieces else WordLevel(tokens, unk_token="a")  # type: ignore[arg-type]
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | settings)
    )


def _slow_files(directory: Path, files: dict[str, Any]) -> None:
    for path in directory.glob("tokenizer*.json"):
        path.unlink()
    for name, content in files.items():
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def make_model(make_model: Callable[..., Path]) -> Callable[..., Path]:
    """The models of all tests here have a tokenizer, all of them the same."""

    def make(kind: str, name: str = "model", **settings: Any) -> Path:
        directory = make_model(kind, name, **settings)
        _tokenizer(directory, {"a": 0, "b": 1})
        return directory

    return make


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "qwen2", "neox", "opt", "mixtral"])
def test_fine_tunes_of_one_base_are_compatible_without_warnings(kind: str, open_model: Callable[..., Source]) -> None:
    base = open_model(kind, "base")
    experts = [open_model(kind, f"expert{seed}", seed=seed, like=base) for seed in (1, 2)]
    assert check_compatible(base, experts) == []


def test_each_mismatch_is_a_line_that_names_both_models(open_model: Callable[..., Source]) -> None:
    base = open_model("llama", "base")
    narrow = open_model("llama", "narrow", intermediate_size=40)
    deep = open_model("llama", "deep", num_hidden_layers=3)
    lines = _lines(base, narrow, deep)
    assert all(line.startswith("- 'base' and ") for line in lines)
    assert "- 'base' and 'narrow': config intermediate_size is 48 and 40" in lines
    assert any(
        "'narrow': 6 tensors of another shape: model.layers.0.mlp.down_proj.weight [32, 48] and [32, 40]" in line
        for line in lines
    )
    assert any(
        "'deep' has 9 tensors that 'base' lacks: model.layers.2.input_layernorm.weight" in line for line in lines
    )


def test_n23_unequal_vocabularies_are_refused(open_model: Callable[..., Source]) -> None:
    lines = _lines(open_model("llama", "base"), open_model("llama", "expert", vocab_size=66))
    hint = " (`tokenizer: base` in search.yaml aligns vocabularies by token)"
    assert f"- 'base' and 'expert': config vocab_size is 64 and 66{hint}" in lines
    assert any("lm_head.weight [64, 32] and [66, 32]" in line for line in lines)


def test_n23_a_tied_and_an_untied_model_are_refused(open_model: Callable[..., Source]) -> None:
    base = open_model("llama_tied", "base")
    lines = _lines(base, open_model("llama", "expert", like=base))
    assert lines == [
        "- 'base' and 'expert': model.embed_tokens.weight and lm_head.weight are one tied tensor in 'base' and "
        "separate in 'expert' (`missing: base` in search.yaml takes what the base has)"
    ]


def test_other_architectures_are_refused(open_model: Callable[..., Source]) -> None:
    lines = _lines(open_model("llama", "base"), open_model("gpt2", "expert"))
    assert "- 'base' and 'expert': config model_type is 'llama' and 'gpt2'" in lines


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu"}, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}]
)
def test_other_arithmetic_with_equal_shapes_is_refused(
    change: dict[str, Any], open_model: Callable[..., Source]
) -> None:
    base = open_model("llama", "base")
    expert = open_model("llama", "expert", **change)
    assert expert.header == base.header
    assert {f"- 'base' and 'expert': config {key}" for key in change} == {
        line.split(" is ")[0] for line in _lines(base, expert)
    }


def test_other_rotary_settings_and_norms_are_a_warning(open_model: Callable[..., Source]) -> None:
    rope = {"rope_theta": 500000.0, "rope_type": "default"}
    expert = open_model("llama", "expert", rms_norm_eps=1e-5, rope_parameters=rope)
    assert check_compatible(open_model("llama", "base"), [expert]) == [
        "'base' and 'expert': config rms_norm_eps is 1e-06 and 1e-05; merges run with 1e-06",
        "'base' and 'expert': config rope_parameters.rope_theta is 10000.0 and 500000.0; merges run with 10000.0",
    ]


def test_an_old_config_that_leaves_out_defaults_is_not_a_difference(
    open_model: Callable[..., Source], make_model: Callable[..., Path]
) -> None:
    directory = make_model("llama", "expert")
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"], config["hidden_act"]
    (directory / "config.json").write_text(json.dumps(config | {"rope_theta": 10000.0, "use_cache": False}))
    assert check_compatible(open_model("llama", "base"), [open_source(ModelRef("expert", str(directory)))]) == []


def test_other_dtypes_are_a_warning(open_model: Callable[..., Source]) -> None:
    expert = open_model("llama", "expert", dtype=torch.bfloat16)
    (warning,) = check_compatible(open_model("llama", "base"), [expert])
    assert "21 tensors of another dtype: lm_head.weight float32 and bfloat16" in warning


def test_n23_one_id_for_two_tokens_is_refused(open_model: Callable[..., Source]) -> None:
    base, expert = open_model("llama", "base"), open_model("llama", "expert")
    _tokenizer(base.directory, {"a": 0, "b": 1, "c": 2})
    _tokenizer(expert.directory, {"a": 0, "c": 1, "z": 2})
    said = "- 'base' and 'expert': the vocabularies give 1 ids to other tokens:"
    assert [line.partition(" (`tok")[0] for line in _lines(base, expert)] == [f"{said} 'c' is 2 and 1"]
    _tokenizer(expert.directory, {"a": 0, "b": 1, "z": 2})
    assert [line.partition(" (`tok")[0] for line in _lines(base, expert)] == [f"{said} 2 is 'c' and 'z'"]


def test_further_and_special_tokens_are_a_warning(open_model: Callable[..., Source]) -> None:
    base, expert = open_model("llama", "base"), open_model("llama", "expert")
    _tokenizer(base.directory, {"a": 0, "b": 1})
    _tokenizer(expert.directory, {"a": 0, "b": 1, "<pad>": 2}, special=("<pad>",))
    assert check_compatible(base, [expert]) == [
        "'base' and 'expert': 1 tokens stand in one vocabulary only: '<pad>'; merges use the base's",
        "'base' and 'expert': 1 tokens are special in one tokenizer only: <pad>",
    ]


def test_a_unigram_vocabulary_is_read_by_position(open_model: Callable[..., Source]) -> None:
    base, expert = open_model("llama", "base"), open_model("llama", "expert")
    _tokenizer(base.directory, [["a", 0.0], ["b", -1.0]])
    _tokenizer(expert.directory, [["b", 0.0], ["a", -1.0]])
    assert "2 ids" in _lines(base, expert)[0]


@pytest.mark.parametrize("lacking", ["base", "expert"])
def test_n23_where_vocabularies_cannot_be_compared_a_warning_says_so(
    lacking: str, open_model: Callable[..., Source]
) -> None:
    base, expert = open_model("gpt2", "base"), open_model("gpt2", "expert")
    _slow_files({"base": base, "expert": expert}[lacking].directory, {})
    (warning,) = check_compatible(base, [expert])
    assert "'base' and 'expert': the vocabularies cannot be compared: source " + repr(lacking) in warning
    assert "holds no tokenizer" in warning
    _slow_files({"base": base, "expert": expert}[lacking].directory, {"tokenizer_config.json": {}})
    (warning,) = check_compatible(base, [expert])
    assert "has no tokens but added ones" in warning


BPE = {"vocab.json": {"<|endoftext|>": 0, "a": 1, "b": 2}, "merges.txt": "#version: 0.2\n"}
SWAPPED_BPE = {"vocab.json": {"<|endoftext|>": 0, "a": 2, "b": 1}}
PIECES = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def _added(*tokens: str) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(3 + index): {"content": token} for index, token in enumerate(tokens)}}


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "said"),
    [
        ("gpt2", BPE, BPE | SWAPPED_BPE, "2 ids to other tokens: 'a' is 1 and 2"),
        (
            "gpt2",
            BPE | {"added_tokens.json": {"<x>": 3, "<y>": 4}},
            BPE | {"added_tokens.json": {"<x>": 4, "<y>": 3}},
            "2 ids to other tokens: '<x>' is 3 and 4",
        ),
        (
            "opt",
            BPE | {"tokenizer_config.json": _added("<x>", "<y>")},
            BPE | {"tokenizer_config.json": _added("<y>", "<x>")},
            "2 ids to other tokens: '<x>' is 3 and 4",
        ),
        (
            "opt",
            BPE | {"tokenizer_config.json": _added("<x>")},
            BPE | {"added_tokens.json": {"<z>": 3}},
            "1 ids to other tokens: 3 is '<x>' and '<z>'",
        ),
        (
            "llama",
            {"vocab.txt": PIECES + "a\nb\n", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
            {"vocab.txt": PIECES + "b\na\n", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
            "2 ids to other tokens: 'a' is 5 and 6",
        ),
    ],
    ids=["vocab.json", "added_tokens.json", "added_tokens_decoder", "other files", "vocab.txt"],
)
def test_n23_ids_that_mean_other_tokens_are_refused_whichever_file_says_so(
    kind: str, ours: dict[str, Any], theirs: dict[str, Any], said: str, open_model: Callable[..., Source]
) -> None:
    base, expert = open_model(kind, "base"), open_model(kind, "expert")
    _slow_files(base.directory, ours)
    _slow_files(expert.directory, ours)
    assert check_compatible(base, [expert]) == []
    _slow_files(expert.directory, theirs)
    (line,) = _lines(base, expert)
    assert said in line


def test_an_added_token_that_takes_the_id_of_another_is_refused(open_model: Callable[..., Source]) -> None:
    base, expert = open_model("llama", "base"), open_model("llama", "expert")
    file = expert.directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {"a": 0, "<x>": 1}
    file.write_text(json.dumps(content))
    (line,) = _lines(base, expert)
    assert "the vocabularies give 1 ids to other tokens: 1 is 'b' and '<x>'" in line


def test_roles_of_tokens_and_chat_templates_are_warnings(open_model: Callable[..., Source]) -> None:
    base, expert = open_model("llama", "base"), open_model("llama", "expert")
    _tokenizer(base.directory, {"a": 0, "b": 1, "c": 2}, eos_token="a")
    _tokenizer(expert.directory, {"a": 0, "b": 1, "c": 2}, eos_token="b", pad_token="a", chat_template="{{ messages }}")
    assert check_compatible(base, [expert]) == [
        "'base' and 'expert': 1 tokens are special in one tokenizer only: b",
        "'base' and 'expert': eos_token is 'a' (0) and 'b' (1); merges use the base's",
        "'base' and 'expert': pad_token is none and 'a' (0); merges use the base's",
        "'base' and 'expert': the chat templates differ; merges use the base's",
    ]


def test_equal_tokenizer_files_are_not_loaded(
    open_model: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, expert = open_model("llama", "base"), open_model("llama", "expert")
    monkeypatch.setattr(compatibility, "read_vocabulary", None)
    assert check_compatible(base, [expert]) == []


def test_n23_integers_for_floating_point_numbers_are_refused(
    make_model: Callable[..., Path], open_model: Callable[..., Source]
) -> None:
    file = make_model("llama", "expert") / "model.safetensors"
    stored = load_file(file)
    save_file(stored | {"lm_head.weight": stored["lm_head.weight"].to(torch.int8)}, file)
    expert = open_source(ModelRef("expert", str(file.parent)))
    (line,) = _lines(open_model("llama", "base"), expert)
    assert "1 tensor of floating-point numbers in one model only: lm_head.weight float32 and int8" in line


def test_tensors_that_are_not_loaded_are_a_warning(
    make_model: Callable[..., Path], open_model: Callable[..., Source]
) -> None:
    file = make_model("llama", "expert") / "model.safetensors"
    save_file(load_file(file) | {"old.buffer": torch.ones(1)}, file)
    expert = open_source(ModelRef("expert", str(file.parent)))
    (warning,) = check_compatible(open_model("llama", "base"), [expert])
    assert warning == "'expert': LlamaForCausalLM does not load 1 tensor: old.buffer"
