"""Models of which text is a part: their layers, and exports that lose nothing of what is not merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    GotOcr2Config,
    MllamaConfig,
    MossTranscribeDiarizeConfig,
    Phi4MultimodalConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5Config,
)

from evomerge.artefacts import write_model
from evomerge.checkpoints import Source, check_compatible, load_skeleton, open_source
from evomerge.recipe import ModelRef, Recipe, Rule

ITEMS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Every tower is deeper than the text model.
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def _mllama(**text: Any) -> MllamaConfig:
    vision = {"attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0, 1], "max_num_tiles": 2}
    further = {"vision_output_dim": 48, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    return MllamaConfig(
        text_config={**TEXT, "cross_attention_layers": [], "rope_parameters": {"rope_theta": 1e4}, **text},
        vision_config={**VISION, **vision, **further},
        image_token_index=60,
    )


def _qwen(**text: Any) -> Qwen3_5Config:
    vision = {"depth": 5, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "num_position_embeddings": 16}
    return Qwen3_5Config(
        text_config={**TEXT, "head_dim": 8, "layer_types": ["full_attention"] * 2, **text},
        vision_config={**vision, "out_hidden_size": 32},
    )


def _gemma(**text: Any) -> Gemma3Config:
    tokens = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4}
    return Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 16, **text}, vision_config=VISION, **tokens
    )


def _got(**text: Any) -> GotOcr2Config:
    vision = {**VISION, "output_channels": 16, "image_size": 32, "mlp_dim": 16, "global_attn_indexes": [1]}
    return GotOcr2Config(
        text_config={"model_type": "qwen2", **TEXT, **text}, vision_config=vision, image_token_index=60
    )


def _moss(**text: Any) -> MossTranscribeDiarizeConfig:
    audio = {"d_model": 16, "encoder_layers": 5, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    further = {"num_mel_bins": 8, "max_source_positions": 32}
    return MossTranscribeDiarizeConfig(
        text_config={**TEXT, "head_dim": 8, **text}, audio_config={**audio, **further}, audio_token_id=60
    )


def _phi(**text: Any) -> Phi4MultimodalConfig:
    audio = {"hidden_size": 16, "intermediate_size": 24, "num_blocks": 5, "num_attention_heads": 2}
    return Phi4MultimodalConfig(
        **{**TEXT, **text},
        vision_config={**VISION, "crop_size": 16},
        audio_config={**audio, "ext_pw_out_channel": 16, "nemo_conv_channels": 16},
    )


CONFIGS: dict[str, tuple[Callable[..., PreTrainedConfig], str]] = {
    "mllama": (_mllama, "MllamaForConditionalGeneration"),
    "qwen3_5": (_qwen, "Qwen3_5ForConditionalGeneration"),
    "gemma3": (_gemma, "Gemma3ForConditionalGeneration"),
    "got_ocr2": (_got, "GotOcr2ForConditionalGeneration"),
    "moss_transcribe_diarize": (_moss, "MossTranscribeDiarizeForConditionalGeneration"),
    "phi4_multimodal": (_phi, "Phi4MultimodalForCausalLM"),
    "sequence_classifier": (
        lambda **text: Qwen2Config(**{**TEXT, "tie_word_embeddings": True, **text}),
        "Qwen2ForSequenceClassification",
    ),
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(kind, name, seed=0, **text settings) -> directory, saved by the class that loads all of the model."""

    def made(kind: str, name: str = "base", *, seed: int = 0, **text: Any) -> Path:
        config, class_name = CONFIGS[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(transformers, class_name)(config(**text))
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return made


def _open(directory: Path, like: Source | None = None) -> Source:
    return open_source(ModelRef(directory.name, str(directory)), like=like)


def _add(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = directory / "model.safetensors"
    save_file(load_file(file) | tensors, file, {"format": "pt"})


def _export(base: Source, out: Path, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> dict[str, torch.Tensor]:
    """An export of doubled tensors of the language model; returns what was merged."""
    merged = {name: base.tensors[name].mul(2).to(dtype) for name in sorted(base.language)}
    rule = Rule(
        tensors=tuple(merged),
        method="linear",
        sources=(base.name,),
        parameters={"weight": (1.0,)},
        options={"normalize": True},
    )
    recipe = Recipe(base=base.ref, sources=(), rules=(rule,), dtype=str(dtype).removeprefix("torch."))
    write_model(out, base=base, tensors=merged.items(), dtype=dtype, recipe=recipe, **settings)
    return merged


def _load_as_named(directory: Path) -> tuple[Any, dict[str, Any]]:
    (name,) = json.loads((directory / "config.json").read_text())["architectures"]
    model, loading = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    return model, loading


def _stored(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    "kind", ["mllama", "qwen3_5", "gemma3", "got_ocr2", "moss_transcribe_diarize", "phi4_multimodal"]
)
def test_the_layers_are_those_of_the_language_model_though_a_tower_is_deeper(
    kind: str, make: Callable[..., Path]
) -> None:
    source = _open(make(kind))
    catalogue = source.catalogue
    assert catalogue.depth == source.divided([("all", "")]).depth == 2
    assert {
        entry.layer for entry in catalogue.entries if "self_attn.q_proj" in entry.name and "tower" not in entry.name
    }
    assert all("layers." in entry.name for entry in catalogue.entries if entry.layer is not None)
    towers = ("vision", "visual", "audio", "image")
    assert not [
        entry.name for entry in catalogue.entries if entry.layer is not None and any(t in entry.name for t in towers)
    ]


@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 20_000])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_class_that_the_config_names_finds_all_of_its_tensors_in_an_export(
    kind: str, max_shard_bytes: int, make: Callable[..., Path], tmp_path: Path
) -> None:
    base = _open(make(kind))
    merged = _export(base, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    _, loading = _load_as_named(tmp_path / "out")
    assert loading["missing_keys"] == set()
    assert loading["unexpected_keys"] == set()
    stored = _stored(tmp_path / "out")
    assert stored.keys() == _stored(base.directory).keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in merged.items())
    assert all(torch.equal(stored[name], base.weights.tensors[name]) for name in base.unused)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[base.live_names[name]], tensor) for name, tensor in merged.items())


@pytest.mark.parametrize(
    ("kind", "further"),
    [
        ("qwen3_5", "mtp.fc.weight"),
        ("qwen3_5", "mtp.layers.0.mlp.down_proj.weight"),
        ("sequence_classifier", "v_head.summary.weight"),
        ("sequence_classifier", "rotary_emb.inv_freq"),
    ],
)
def test_heads_that_no_class_loads_are_copied_with_their_bits_and_dtype(
    kind: str, further: str, make: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make(kind)
    tensor = torch.randn(3, 5, dtype=torch.float64)
    _add(directory, {further: tensor})
    base = _open(directory)
    assert further in base.unused
    _export(base, tmp_path / "out")
    assert torch.equal(_stored(tmp_path / "out")[further], tensor)


def test_a_base_that_lacks_its_tower_is_exported_as_the_language_model_that_it_is(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    for kind in ("mllama", "qwen3_5"):
        directory = make(kind, kind)
        text = _open(directory).stored_names.values()
        stored = load_file(directory / "model.safetensors")
        save_file({name: stored[name] for name in text}, directory / "model.safetensors", {"format": "pt"})
        base = _open(directory)
        _export(base, tmp_path / f"{kind}-out")
        model, loading = _load_as_named(tmp_path / f"{kind}-out")
        assert type(model).__name__.endswith("ForCausalLM")
        assert (loading["missing_keys"], loading["unexpected_keys"]) == (set(), set())
        live, parameters = load_skeleton(_open(tmp_path / f"{kind}-out"), dtype=torch.bfloat16)
        assert len(parameters) == len(base.catalogue.names)
        assert torch.equal(live(ITEMS).logits, model(ITEMS).logits)


def test_a_classifier_without_its_score_is_exported_as_the_language_model_that_it_is(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make("sequence_classifier")
    stored = load_file(directory / "model.safetensors")
    save_file(
        {n: t for n, t in stored.items() if n != "score.weight"}, directory / "model.safetensors", {"format": "pt"}
    )
    _export(_open(directory), tmp_path / "out")
    model, loading = _load_as_named(tmp_path / "out")
    assert (type(model).__name__, loading["missing_keys"]) == ("Qwen2ForCausalLM", set())


def test_both_names_of_a_tensor_are_written_where_the_whole_class_does_not_tie_them(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make("qwen3_5", tie_word_embeddings=True)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    embedding = load_file(directory / "model.safetensors")["model.language_model.embed_tokens.weight"]
    _add(directory, {"lm_head.weight": embedding.clone()})
    base = _open(directory)
    assert base.tied
    _export(base, tmp_path / "out")
    _, loading = _load_as_named(tmp_path / "out")
    assert loading["missing_keys"] == set()


@pytest.mark.parametrize("kind", ["mllama", "qwen3_5"])
def test_an_expert_with_another_tower_is_a_warning(kind: str, make: Callable[..., Path]) -> None:
    base = _open(make(kind))
    same, other = make(kind, "same"), make(kind, "other", seed=1)
    said = [line for line in check_compatible(base, [_open(same, base)]) if "that no merge changes" in line]
    assert said == []
    (line,) = (line for line in check_compatible(base, [_open(other, base)]) if "that no merge changes" in line)
    assert "exports hold the base's" in line
