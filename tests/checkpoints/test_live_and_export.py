"""What was scored is what is exported (law 3): the live model, the export, and the export read again."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    MBartConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from evomerge.artefacts import model_writer, write_model
from evomerge.checkpoints import Source, check_scorable, load_skeleton, open_source, tensor_digests, verify_digests
from evomerge.checkpoints.tokenizer import tokenizer_files
from evomerge.errors import InvalidInput, MergeError
from evomerge.recipe import ModelRef, Recipe, Rule

KINDS = ["llama", "llama_tied", "gpt2", "qwen2", "neox", "opt"]
ITEMS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def _average(base: Source, expert: Source, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        entry.name: ((base.tensors[entry.name].float() + expert.tensors[entry.name].float()) / 2).to(dtype)
        for entry in base.catalogue.mergeable
    }


def _recipe(base: Source, expert: Source, dtype: str = "float32", tensors: tuple[str, ...] | None = None) -> Recipe:
    names = tensors if tensors is not None else tuple(entry.name for entry in base.catalogue.mergeable)
    rule = Rule(
        tensors=names,
        method="linear",
        sources=(base.name, expert.name),
        parameters={"weight": (0.5, 0.5)},
        options={"normalize": True},
    )
    return Recipe(base=base.ref, sources=(expert.ref,), rules=(rule,), dtype=dtype)


def _pair(open_model: Callable[..., Source], kind: str) -> tuple[Source, Source]:
    base = open_model(kind, "base")
    return base, open_model(kind, "expert", seed=1, like=base)


def _write(out: Path, base: Source, expert: Source, dtype: torch.dtype = torch.float32, **settings: object) -> None:
    merged = _average(base, expert, dtype)
    recipe = _recipe(base, expert, str(dtype).removeprefix("torch."))
    write_model(out, base=base, tensors=merged.items(), dtype=dtype, recipe=recipe, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_n9_n14_a_live_merge_and_its_export_give_the_same_logits_bit_for_bit(
    kind: str, dtype: torch.dtype, open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, kind)
    model, parameters = load_skeleton(base, dtype=dtype)
    before = model(ITEMS).logits
    for name, tensor in _average(base, expert, dtype).items():
        parameters[name].copy_(tensor)
    _write(tmp_path / "out", base, expert, dtype)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.dtype == dtype
    assert torch.equal(model(ITEMS).logits, exported(ITEMS).logits)
    assert not torch.equal(model(ITEMS).logits, before)


@pytest.mark.parametrize("kind", [*KINDS, "mixtral"])
def test_n9_an_export_read_again_has_the_very_bits_that_were_given(
    kind: str, open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, kind)
    merged = _average(base, expert, torch.bfloat16)
    _write(tmp_path / "out", base, expert, torch.bfloat16)
    again = open_source(ModelRef("export", str(tmp_path / "out")))
    assert again.header.keys() == base.header.keys()
    verify_digests(tensor_digests(merged.items()), tensor_digests(again.tensors.items()))


def test_n9_a_sharded_export_is_the_same_model(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama_tied")
    _write(tmp_path / "whole", base, expert)
    _write(tmp_path / "sharded", base, expert, max_shard_bytes=10_000)
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(sum(tensor.nbytes for tensor in load_file(shard).values()) <= 10_000 for shard in shards)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(base.catalogue.names)
    assert index["metadata"]["total_size"] == 4 * base.catalogue.parameters
    whole, sharded = (open_source(ModelRef("export", str(tmp_path / name))) for name in ("whole", "sharded"))
    assert whole.ref.fingerprint == sharded.ref.fingerprint
    logits = [AutoModelForCausalLM.from_pretrained(source.directory)(ITEMS).logits for source in (whole, sharded)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_is_the_source_itself_until_it_is_replaced(kind: str, open_model: Callable[..., Source]) -> None:
    source = open_model(kind)
    model, parameters = load_skeleton(source, dtype=torch.float32)
    assert parameters.keys() == set(source.catalogue.names)
    assert all(torch.equal(parameters[name], source.tensors[name]) for name in parameters)
    assert len({tensor.data_ptr() for tensor in parameters.values()}) == len(parameters)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(ITEMS).logits, AutoModelForCausalLM.from_pretrained(source.directory)(ITEMS).logits)


def test_n23_replacing_a_tied_tensor_replaces_input_and_output(open_model: Callable[..., Source]) -> None:
    model, parameters = load_skeleton(open_model("llama_tied"), dtype=torch.float32)
    parameters["model.embed_tokens.weight"].fill_(0.25)
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert torch.equal(model.lm_head.weight, torch.full((64, 32), 0.25))


def test_a_checkpoint_without_the_prefix_of_its_base_model_is_replaced_under_its_own_names(
    make_model: Callable[..., Path],
) -> None:
    file = make_model("gpt2", "bare") / "model.safetensors"
    stored = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name.removeprefix("transformer."): tensor for name, tensor in stored.items()}, file, {"format": "pt"})
    model, parameters = load_skeleton(open_source(ModelRef("bare", str(file.parent))), dtype=torch.float32)
    parameters["h.1.ln_2.bias"].fill_(7)
    assert torch.equal(model.transformer.h[1].ln_2.bias, torch.full((32,), 7.0))


def test_computed_buffers_keep_their_precision(open_model: Callable[..., Source]) -> None:
    model, _ = load_skeleton(open_model("llama"), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "name"), [("llama", "model.layers.1.mlp.up_proj.weight"), ("gpt2", "transformer.h.0.ln_1.bias")]
)
def test_integers_in_the_place_of_floating_point_numbers_are_not_scorable(
    kind: str, name: str, make_model: Callable[..., Path]
) -> None:
    file = make_model(kind) / "model.safetensors"
    stored = load_file(file)
    save_file(stored | {name: stored[name].mul(100).to(torch.int8)}, file, {"format": "pt"})
    source = open_source(ModelRef("packed", str(file.parent)))
    with pytest.raises(InvalidInput, match=rf"'packed': .*\({name} is int8, expected floating-point"):
        check_scorable(source)
    with pytest.raises(InvalidInput, match="is int8"):
        load_skeleton(source, dtype=torch.float32)


@pytest.mark.parametrize("config", [BartConfig, MBartConfig])
def test_encoder_decoder_models_are_not_scorable(config: type[PreTrainedConfig], tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    further = {"decoder_ffn_dim": 16, "encoder_ffn_dim": 16, "decoder_attention_heads": 2, "encoder_attention_heads": 2}
    AutoModelForCausalLM.from_config(config(**sizes, **further)).save_pretrained(tmp_path / "model")
    source = open_source(ModelRef("translator", str(tmp_path / "model")))
    with pytest.raises(
        InvalidInput, match=r"'translator': .*ForCausalLM is of a type that is run as an encoder-decoder"
    ):
        check_scorable(source)


def test_a_model_type_without_a_language_model_has_no_skeleton(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(InvalidInput, match="no causal language model for the model type 'unheard_of'"):
        load_skeleton(open_source(ModelRef("odd", str(directory))), dtype=torch.float32)


def test_n13_a_skeleton_leaves_the_global_generator_alone(open_model: Callable[..., Source]) -> None:
    source = open_model("llama")
    before = torch.get_rng_state()
    load_skeleton(source, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_export_has_config_tokenizer_licence_recipe_and_further_files(
    open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, "llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "COPYING", "LICENCE.md", "LICENSE", "notes.txt"):
        (base.directory / name).write_text("{}")
    base = open_source(base.ref)
    _write(tmp_path / "out", base, expert, torch.bfloat16, files={"README.md": "# Card\n"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "COPYING",
        "LICENCE.md",
        "LICENSE",
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert Recipe.from_json((tmp_path / "out" / "recipe.json").read_text()) == _recipe(base, expert, "bfloat16")


def _save_tekken(folder: Path) -> None:
    """The files of a tokenizer of Mistral's own format: one token for each byte."""
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(("<unk>", "<s>"))]
    content = {
        "config": {
            "pattern": r"\p{L}+|\s+",
            "num_vocab_tokens": 256,
            "default_vocab_size": 258,
            "default_num_special_tokens": 2,
            "version": "v3",
        },
        "vocab": [{"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode()} for byte in range(256)],
        "special_tokens": special,
    }
    (folder / "tekken.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text("{}")


def _save_templates(folder: Path) -> None:
    """The files of a tokenizer with two chat templates."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")))
    tokenizer.chat_template = {"default": "D", "rag": "R"}
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("save", [_save_tekken, _save_templates])
def test_an_export_has_the_vocabulary_and_all_chat_templates_of_the_base(
    save: Callable[[Path], None], open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, "llama")
    save(base.directory)
    base = open_source(base.ref)
    for _ in range(2):  # an export replaces an earlier one
        _write(tmp_path / "out", base, expert)
        ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", base.directory))
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.chat_template == theirs.chat_template
    assert len(ours) == 258 if save is _save_tekken else ours.chat_template == {"default": "D", "rag": "R"}


def test_the_code_of_a_tokenizer_alone_goes_along_where_it_may_run(
    open_model: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    base, expert = _pair(open_model, "llama")
    _save_templates(base.directory)
    (base.directory / "tokenization_odd.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class OddTokenizer(PreTrainedTokenizerFast):\n    odd = True\n"
    )
    config = base.directory / "tokenizer_config.json"
    own = {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": [None, "tokenization_odd.OddTokenizer"]}}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    _write(tmp_path / "plain", open_source(base.ref), expert)
    assert not list((tmp_path / "plain").glob("*.py"))
    _write(tmp_path / "out", open_source(base.ref, allow={"remote_code"}), expert)
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True).odd


def test_tiktoken_files_are_of_the_tokenizer(tmp_path: Path) -> None:
    for name in ("tiktoken.model", "qwen.tiktoken", "notes.txt"):
        (tmp_path / name).touch()
    assert tokenizer_files(tmp_path) == ("qwen.tiktoken", "tiktoken.model")


def test_nested_configs_get_the_dtype_and_the_origin_is_left_out() -> None:
    text = {"_name_or_path": "/home/me/text", "torch_dtype": "float32", "sizes": {"a": 1}}
    config = {"_name_or_path": "/home/me/model", "text_config": text}
    assert model_writer.exported_config(config, torch.bfloat16) == {
        "text_config": {"torch_dtype": "bfloat16", "sizes": {"a": 1}},
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    assert config["text_config"]["torch_dtype"] == "float32"  # type: ignore[index]  # N24: the argument stays as it was


def test_tensors_that_no_rule_names_are_copied_from_the_base(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama")
    recipe = _recipe(base, expert, tensors=("model.norm.weight",))
    merged = [("model.norm.weight", torch.full((32,), 2.0))]
    write_model(tmp_path / "out", base=base, tensors=merged, dtype=torch.float32, recipe=recipe)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], torch.full((32,), 2.0))
    assert torch.equal(written["lm_head.weight"], base.tensors["lm_head.weight"])


def test_a_tensor_of_the_base_that_the_dtype_cannot_hold_is_not_copied(
    open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, "llama")
    names = ("model.norm.weight", "lm_head.weight")
    large = replace(base, tensors={**base.tensors, names[1]: torch.full(base.catalogue[names[1]].shape, 1e5)})
    recipe = replace(_recipe(base, expert, tensors=names[:1]), dtype="float16")
    merged = [(names[0], torch.full((32,), 2.0, dtype=torch.float16))]
    with pytest.raises(MergeError, match=f"'{names[1]}', which the merge has from the base, is not finite in float16"):
        write_model(tmp_path / "out", base=large, tensors=merged, dtype=torch.float16, recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_the_same_buffer_may_be_given_again_and_again(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama")
    merged, scratch = _average(base, expert, torch.float32), torch.empty(64 * 48)

    def stream() -> object:
        for name, tensor in merged.items():
            view = scratch[: tensor.numel()].view(tensor.shape)
            yield name, view.copy_(tensor)

    write_model(tmp_path / "out", base=base, tensors=stream(), dtype=torch.float32, recipe=_recipe(base, expert))  # type: ignore[arg-type]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in merged.items())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "1 tensor not given: model.norm.weight"),
        ([("model.norm.weight", torch.ones(32, dtype=torch.float16))], "float16, expected float32"),
        ([("model.norm.weight", torch.ones(31))], r"\[31\], expected \[32\]"),
        ([("model.norm.weight", torch.ones(32))] * 2, "twice"),
        ([("ghost", torch.ones(32))], "no tensor ghost"),
    ],
)
def test_tensors_that_are_not_those_of_the_recipe_leave_nothing_behind(
    tensors: list[tuple[str, torch.Tensor]], message: str, open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, "llama")
    recipe = _recipe(base, expert, tensors=("model.norm.weight",))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        write_model(tmp_path / "out", base=base, tensors=tensors, dtype=torch.float32, recipe=recipe)
    assert sorted(tmp_path.iterdir()) == before


def test_an_earlier_export_is_replaced_and_survives_a_failed_one(
    open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, "llama")
    out = tmp_path / "out"
    _write(out, base, expert, max_shard_bytes=10_000, files={"mergekit.yaml": "a"})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="not given"):
        write_model(out, base=base, tensors=[], dtype=torch.float32, recipe=_recipe(base, expert))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    _write(out, base, expert)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "expert", "out"]


def test_an_empty_directory_is_filled(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama")
    (tmp_path / "out").mkdir()
    _write(tmp_path / "out", base, expert)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_directory_that_is_not_an_export_is_never_touched(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.md").write_text("years of work")
    with pytest.raises(InvalidInput, match="not an earlier export"):
        _write(out, base, expert)
    (out / "recipe.json").write_text("{}")
    with pytest.raises(InvalidInput, match="not an earlier export"):
        _write(out, base, expert)
    (out / "recipe.json").write_text(_recipe(base, expert).to_json())
    with pytest.raises(InvalidInput, match=r"also holds thesis\.md"):
        _write(out, base, expert)
    assert (out / "thesis.md").read_text() == "years of work"


def test_an_export_never_replaces_one_of_its_own_sources(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama")
    _write(tmp_path / "first", base, expert)
    merged = open_source(ModelRef("merged", str(tmp_path / "first")))
    with pytest.raises(InvalidInput, match="holds a source of this merge"):
        _write(tmp_path / "first", base, merged)
    with pytest.raises(InvalidInput, match="holds a source of this merge"):
        _write(tmp_path / "first", merged, expert)


def test_an_export_does_not_follow_links(open_model: Callable[..., Source], tmp_path: Path) -> None:
    base, expert = _pair(open_model, "llama")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="not a directory"):
        _write(tmp_path / "out", base, expert)


@pytest.mark.parametrize("name", ["../README.md", "sub/README.md", "config.json", "x.safetensors", "recipe.json", ""])
def test_further_files_stay_in_the_export_and_replace_nothing(
    name: str, open_model: Callable[..., Source], tmp_path: Path
) -> None:
    base, expert = _pair(open_model, "llama")
    with pytest.raises(ValueError, match="not a free file name"):
        _write(tmp_path / "out", base, expert, files={name: "text"})
