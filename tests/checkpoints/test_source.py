from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers.dynamic_module_utils
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from evomerge.artefacts.model_writer import exported_config
from evomerge.checkpoints import Source, load_skeleton, location, open_source
from evomerge.checkpoints.state_dict_files import open_state_dict
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef


def _ref(directory: Path, name: str = "model") -> ModelRef:
    return ModelRef(name, str(directory))


def _edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = change({name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()})
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _with_head(tensors: dict[str, torch.Tensor], offset: float = 0.0) -> dict[str, torch.Tensor]:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + offset}


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2", "qwen2", "neox", "opt", "mixtral"])
def test_a_source_has_the_tensors_of_its_file(kind: str, open_model: Callable[..., Source]) -> None:
    source = open_model(kind)
    stored = load_file(source.directory / "model.safetensors")
    assert source.catalogue.names == tuple(sorted(stored)) == tuple(source.tensors)
    assert source.header == {name: (tuple(tensor.shape), "float32") for name, tensor in stored.items()}
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in stored.items())
    assert source.catalogue.depth == 2


def test_one_file_and_shards_are_the_same_source(open_model: Callable[..., Source]) -> None:
    whole = open_model("llama", "whole")
    sharded = open_model("llama", "sharded", max_shard_size="10KB")
    assert len(list(sharded.directory.glob("model-*.safetensors"))) > 1
    assert sharded.ref.fingerprint == whole.ref.fingerprint
    assert sharded.header == whole.header


def test_the_fingerprint_tells_weights_and_config_but_not_the_place(make_model: Callable[..., Path]) -> None:
    def fingerprint(directory: Path) -> str | None:
        return open_source(_ref(directory)).ref.fingerprint

    first = fingerprint(make_model("llama", "first"))
    again = make_model("llama", "again")
    assert fingerprint(again) == first
    _edit_config(again, transformers_version="0", _name_or_path="/elsewhere")
    assert fingerprint(again) == first
    _edit_config(again, rms_norm_eps=1e-3)
    assert fingerprint(again) != first
    assert fingerprint(make_model("llama", "other", seed=1)) != first


def test_a_source_that_changed_since_its_fingerprint_was_taken_is_refused(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    ref = open_source(_ref(directory)).ref
    assert open_source(ref).ref == ref
    _rewrite(directory, lambda tensors: tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1})
    with pytest.raises(InvalidInput, match="has changed"):
        open_source(ref)
    assert open_source(ref, trust_fingerprint=True).ref == ref


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no directory .*/nowhere/at/all"):
        open_source(_ref(tmp_path / "nowhere" / "at" / "all"))


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InvalidInput, match="is a file"):
        open_source(_ref(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline"), OSError("no network")]
)
def test_a_hub_id_that_cannot_be_had_says_what_was_looked_for(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(location, "snapshot_download", fail)
    with pytest.raises(InvalidInput, match=r"no directory .*owner/model.*looks like a hub id.*revision 'main'"):
        open_source(ModelRef("expert", "owner/model"))


def test_a_directory_has_no_revision(make_model: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match=r"is a directory here, and only models of the hub have revisions.*'v1'"):
        open_source(ModelRef("expert", str(make_model("llama")), revision="v1"))


def test_a_hub_model_is_downloaded_without_code_pickles_and_other_formats(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_model("llama")
    asked: dict[str, Any] = {}

    def download(repo: str, **arguments: object) -> str:
        asked.update(arguments, repo=repo)
        return str(directory)

    monkeypatch.setattr(location, "snapshot_download", download)
    source = open_source(ModelRef("expert", "owner/model", revision="v1"))
    assert (asked["repo"], asked["revision"], source.hub_id) == ("owner/model", "v1", "owner/model")
    assert not {"*.py", "*.bin"} & set(asked["allow_patterns"])
    wanted = [
        "COPYING",
        "LICENCE.md",
        "LICENSE",
        "README.md",
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tekken.json",
        "tiktoken.model",
        "tokenizer.model.v3",
        "vocab.txt",
    ]
    others = ["consolidated.safetensors", "modeling.py", "onnx/config.json", "original/tokenizer.model", "x.gguf"]
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    assert sorted(filter_repo_objects([*wanted, *others], **patterns)) == wanted


@pytest.mark.parametrize("both", [True, False], ids=["both formats", "pickles alone"])
def test_pickles_are_downloaded_only_where_a_hub_model_has_no_safetensors(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    directory, asked = make_model("llama"), list[str]()
    if not both:
        _pickled(directory)
    files = ["model.safetensors"] * both + ["optimizer.bin", "pytorch_model-00001-of-00002.bin", "training_args.bin"]

    def download(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: object) -> str:
        asked.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(directory)

    monkeypatch.setattr(location, "snapshot_download", download)
    assert open_source(ModelRef("expert", "owner/model"), allow={"pickle_weights"}).pickled != both
    assert asked == (["model.safetensors"] if both else ["pytorch_model-00001-of-00002.bin"])


def test_a_hub_model_is_found_in_the_cache_without_a_network(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    (repository / "snapshots" / commit).mkdir(parents=True)
    for file in make_model("llama").iterdir():
        blob = file.rename(repository / "blobs" / f"blob-{file.name}")
        (repository / "snapshots" / commit / file.name).symlink_to(
            os.path.relpath(blob, repository / "snapshots" / commit)
        )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    source = open_source(ModelRef("expert", "owner/model"))
    assert source.directory == repository / "snapshots" / commit
    assert source.tensors["lm_head.weight"].shape == (64, 32)


def test_a_hub_model_outside_the_cache_is_not_downloaded_where_that_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def snapshot(*_: object, local_files_only: bool, **__: object) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(location, "snapshot_download", snapshot)
    with pytest.raises(InvalidInput, match="could not be had from the hub or its cache"):
        location.find_directory(ModelRef("expert", "owner/model"), download=False)


def test_remote_code_is_refused_unless_allowed(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    _edit_config(directory, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    with pytest.raises(InvalidInput, match="add remote_code"):
        open_source(_ref(directory))


def test_allowed_remote_code_makes_the_model(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    directory = make_model("llama")
    (directory / "modeling_odd.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
        "class OddForCausalLM(LlamaForCausalLM):\n    config_class = OddConfig\n"
    )
    auto_map = {"AutoConfig": "modeling_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    _edit_config(directory, model_type="odd", auto_map=auto_map)
    source = open_source(_ref(directory), allow={"remote_code"})
    assert source.architecture is not None
    assert source.architecture.name == "OddForCausalLM"
    _, parameters = load_skeleton(source, dtype=torch.float32)
    assert parameters.keys() == set(source.catalogue.names)


def test_allowed_remote_code_from_the_hub_needs_a_full_commit_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "snapshot_download", lambda *_, **__: pytest.fail("must not download"))
    with pytest.raises(InvalidInput, match="full commit hash"):
        open_source(ModelRef("expert", "owner/model", revision="main"), allow={"remote_code"})


def _pickled(directory: Path) -> Path:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def test_pickled_weights_are_refused_unless_allowed(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    expected = open_source(_ref(directory))
    tensors = {name: tensor.clone() for name, tensor in expected.tensors.items()}
    _pickled(directory)
    with pytest.raises(InvalidInput, match="add pickle_weights"):
        open_source(_ref(directory))
    source = open_source(_ref(directory), allow={"pickle_weights"})
    assert source.ref.fingerprint == expected.ref.fingerprint
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch's old format"])
@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_are_read_in_every_format_that_transformers_reads(
    shards: int, zipped: bool, make_model: Callable[..., Path]
) -> None:
    directory = make_model("gpt2")
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = [f"pytorch_model-{number}.bin" for number in range(shards)] if shards > 1 else ["pytorch_model.bin"]
    places = {name: names[number % shards] for number, name in enumerate(tensors)}
    for file in names:
        content = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        torch.save(content, directory / file, _use_new_zipfile_serialization=zipped)
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_source(_ref(directory), allow={"pickle_weights"})
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in tensors.items())
    _, parameters = load_skeleton(source, dtype=torch.float32)
    assert all(torch.equal(parameters[name], source.tensors[name]) for name in source.catalogue.names)


def test_a_tensor_that_a_pickled_shard_lacks_is_named(make_model: Callable[..., Path]) -> None:
    directory = _pickled(make_model("llama"))
    (directory / "pytorch_model.bin").rename(directory / "part.bin")
    index = {"metadata": {}, "weight_map": {"ghost": "part.bin", "lm_head.weight": "part.bin"}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match=r"part\.bin holds ghost, but it does not"):
        open_source(_ref(directory), allow={"pickle_weights"})


@pytest.mark.parametrize("file", ["other.safetensors", "other.safetensors.index.json"])
def test_weights_are_read_from_the_file_that_the_config_names(file: str, make_model: Callable[..., Path]) -> None:
    directory, other = make_model("llama"), make_model("llama", "other", seed=1)
    expected = load_file(other / "model.safetensors")
    shutil.copy(other / "model.safetensors", directory / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(expected, "other.safetensors")}
    (directory / "other.safetensors.index.json").write_text(json.dumps(index))
    _edit_config(directory, transformers_weights=file)
    source = open_source(_ref(directory))
    model, _ = load_skeleton(source, dtype=torch.float32)
    assert all(torch.equal(source.tensors[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    assert "transformers_weights" not in exported_config(source.config, torch.float32)
    _edit_config(directory, transformers_weights="../other/model.safetensors")
    with pytest.raises(InvalidInput, match="a safetensors file in the same directory"):
        open_source(_ref(directory))


@pytest.mark.parametrize("file", ["model.fp16.safetensors", "consolidated.safetensors", "training_args.bin", "q4.gguf"])
def test_files_that_transformers_does_not_read_for_weights_are_named(
    file: str, make_model: Callable[..., Path]
) -> None:
    directory = make_model("llama")
    (directory / "model.safetensors").rename(directory / file)
    with pytest.raises(InvalidInput, match=f"has no weights: .* there are {re.escape(file)}, which transformers"):
        open_source(_ref(directory))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "student.", "module._orig_mod."])
def test_a_prefix_of_a_wrapper_is_named_as_the_reason(prefix: str, kind: str, make_model: Callable[..., Path]) -> None:
    file = make_model(kind) / "model.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    part = prefix.partition(".")[0]
    with pytest.raises(InvalidInput, match=rf"with .*'{part}\..* added, .* save the model without the wrapper"):
        open_source(_ref(file.parent))


def test_a_wrapper_inside_of_the_names_is_named_as_the_reason(make_model: Callable[..., Path]) -> None:
    file = make_model("llama") / "model.safetensors"
    stored = {
        re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module.", name): each for name, each in load_file(file).items()
    }
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(InvalidInput, match=r"with '_fsdp_wrapped_module\.' added"):
        open_source(_ref(file.parent))


def test_an_adapter_that_is_not_merged_is_named_as_the_reason(make_model: Callable[..., Path]) -> None:
    file = make_model("llama") / "model.safetensors"
    stored = {}
    for name, tensor in load_file(file).items():
        name = f"base_model.model.{name}"
        if "q_proj" in name:
            stored[name.replace(".weight", ".lora_A.default.weight")] = torch.zeros(2, 32)
            name = name.replace(".weight", ".base_layer.weight")
        stored[name] = tensor
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(InvalidInput, match="merge_and_unload"):
        open_source(_ref(file.parent))


class _Evil:
    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.witness,))


def test_an_allowed_pickle_still_runs_no_code(make_model: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_model("llama")
    (directory / "model.safetensors").unlink()
    torch.save({"a": _Evil(str(tmp_path / "ran"))}, directory / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="cannot read"):
        open_source(_ref(directory), allow={"pickle_weights"})
    assert not (tmp_path / "ran").exists()


def test_a_directory_without_weights_says_what_was_looked_for(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    (directory / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"looked for model\.safetensors and model\.safetensors\.index\.json"):
        open_source(_ref(directory))


def test_adapters_and_quantised_models_are_refused(make_model: Callable[..., Path]) -> None:
    quantised = make_model("llama", "quantised")
    for changes in (
        {"quantization_config": {"bits": 4}},
        {"text_config": {"quantization_config": {"bits": 4}}},
        {"compression_config": {"quant_method": "compressed-tensors"}, "text_config": None},
    ):
        _edit_config(quantised, **{"quantization_config": None} | changes)
        with pytest.raises(InvalidInput, match=r"is quantised: config\.json has (quantization|compression)_config"):
            open_source(_ref(quantised))
    plain = make_model("llama", "plain")
    _edit_config(plain, quantization_config=None)
    assert open_source(_ref(plain)).catalogue.depth == 2
    adapter = make_model("llama", "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="is an adapter, which cannot be a base"):
        open_source(_ref(adapter))


@pytest.mark.parametrize("ending", ["_scale", "_scale_inv", "_scale_2"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_eight_bit_codes_with_scales_beside_them_are_refused_though_the_config_is_silent(
    make_model: Callable[..., Path], dtype: torch.dtype, ending: str
) -> None:
    directory, name = make_model("llama"), "model.layers.0.mlp.up_proj.weight"
    _rewrite(directory, lambda tensors: tensors | {name: tensors[name].to(dtype), name + ending: torch.ones(1)})
    (directory / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    with pytest.raises(InvalidInput, match=rf"is quantised: it stores scales beside the 8-bit tensors {name}; give"):
        open_source(_ref(directory))
    with pytest.raises(InvalidInput, match="is quantised"):
        open_state_dict(directory / "model.safetensors")


def test_a_plain_cast_to_eight_bits_and_scales_of_a_cache_are_no_quantised_weights(
    make_model: Callable[..., Path],
) -> None:
    directory, name = make_model("llama"), "model.layers.0.mlp.up_proj.weight"
    beside = {"model.layers.0.self_attn.k_proj.k_scale": torch.ones(1)}
    _rewrite(directory, lambda tensors: tensors | {name: tensors[name].to(torch.float8_e5m2)} | beside)
    assert open_source(_ref(directory)).catalogue[name].is_floating


def test_n23_a_tied_head_is_one_tensor(open_model: Callable[..., Source]) -> None:
    tied, untied = open_model("llama_tied", "tied"), open_model("llama", "untied")
    assert tied.is_tied
    assert dict(tied.tied) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert tied.catalogue["model.embed_tokens.weight"].aliases == ("lm_head.weight",)
    assert "lm_head.weight" not in tied.catalogue
    assert not untied.is_tied
    assert "lm_head.weight" in untied.catalogue


def test_n23_both_names_of_a_tied_tensor_with_equal_content_are_one_tensor(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama_tied")
    before = open_source(_ref(directory))
    _rewrite(directory, _with_head)
    source = open_source(_ref(directory))
    assert source.header == before.header
    assert dict(source.tied) == dict(before.tied)


def test_n23_both_names_of_a_tied_tensor_with_different_content_are_refused(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama_tied")
    _rewrite(directory, lambda tensors: _with_head(tensors, 1.0))
    with pytest.raises(InvalidInput, match=r"lm_head\.weight and model\.embed_tokens\.weight are one tied tensor"):
        open_source(_ref(directory))


def test_n23_a_missing_head_of_an_untied_model_is_refused(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    _rewrite(directory, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    with pytest.raises(InvalidInput, match=r"needs 1 tensor that the checkpoint lacks: lm_head\.weight"):
        open_source(_ref(directory))


def test_n23_an_expert_that_stores_a_tied_tensor_twice_is_tied_like_its_base(
    make_model: Callable[..., Path], open_model: Callable[..., Source]
) -> None:
    base = open_model("llama_tied", "base")
    directory = make_model("llama_tied", "expert", seed=1)
    _rewrite(directory, _with_head)
    _edit_config(directory, tie_word_embeddings=False)
    assert not open_source(_ref(directory)).is_tied
    expert = open_source(_ref(directory), like=base)
    assert dict(expert.tied) == dict(base.tied)
    assert expert.header.keys() == base.header.keys()


def test_tensors_are_named_as_the_base_names_them(make_model: Callable[..., Path]) -> None:
    bare = make_model("gpt2", "bare")
    _rewrite(bare, lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()})
    base, prefixed = open_source(_ref(bare, "base")), make_model("gpt2", "expert", seed=1)
    expert = open_source(_ref(prefixed, "expert"), like=base)
    assert "h.0.ln_1.weight" in base.catalogue
    assert expert.catalogue.names == base.catalogue.names
    assert expert.catalogue["wte.weight"].layer is None
    stored = load_file(prefixed / "model.safetensors")
    assert torch.equal(expert.tensors["h.1.mlp.c_fc.weight"], stored["transformer.h.1.mlp.c_fc.weight"])
    assert expert.ref.fingerprint == open_source(_ref(prefixed)).ref.fingerprint


def test_stored_buffers_that_the_model_class_does_not_load_are_left_out(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    _rewrite(directory, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    source = open_source(_ref(directory))
    assert source.unused == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert not set(source.unused) & set(source.tensors)


def test_weights_that_do_not_fit_the_config_are_refused(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    _edit_config(directory, vocab_size=65)
    with pytest.raises(
        InvalidInput, match=r"do not fit config\.json: lm_head\.weight \[64, 32\], config says \[65, 32\]"
    ):
        open_source(_ref(directory))


def test_a_config_that_transformers_cannot_read_is_refused(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    _edit_config(directory, hidden_size="many")
    with pytest.raises(InvalidInput, match="transformers cannot"):
        open_source(_ref(directory))
    (directory / "config.json").write_text("{")
    with pytest.raises(InvalidInput, match="not valid JSON"):
        open_source(_ref(directory))


def test_a_model_type_that_transformers_does_not_know_can_be_read(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    _edit_config(directory, model_type="unheard_of")
    source = open_source(_ref(directory))
    assert source.architecture is None
    assert "lm_head.weight" in source.catalogue


def test_n13_opening_a_source_leaves_the_global_generator_alone(make_model: Callable[..., Path]) -> None:
    directory = make_model("llama")
    before = torch.get_rng_state()
    open_source(_ref(directory))
    assert torch.equal(torch.get_rng_state(), before)


def test_n34_importing_sets_no_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only our own modules are run again: what transformers and torch do when imported is theirs.
    for name in [name for name in sys.modules if name.startswith("evomerge.checkpoints")]:
        monkeypatch.delitem(sys.modules, name)
    before = dict(os.environ)
    importlib.import_module("evomerge.checkpoints")
    assert dict(os.environ) == before
