"""The zoo: small models of the architectures that transformers has for language, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # so that models differ in what they prefer
}


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """A model of the zoo.

    Attributes:
        name: of the row; the architecture, and after a comma what is special.
        group: heading of the document that the row stands under.
        model_type: of the config.
        changes: settings of the config besides those of `COMMON` that its class knows; `...` takes one of them away.
        nested: the config consists of others, and takes nothing of `COMMON`.
        written_as: the class of transformers that writes the checkpoint.
        remote_code: the model brings its code along.
        forms: rewritings of the checkpoint, one after another, see `architecture_models.FORMS`.
        shard_size: of the checkpoint's files.
        stored, merged: dtypes of the checkpoint and of the merge.
        max_length: of the pack, None for what the model's config says.
        allow: what the spec allows.
        compiled: merges are compiled, as those of larger models are; compiling takes a minute once.
    """

    name: str
    group: str
    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False
    written_as: str = "AutoModelForCausalLM"
    remote_code: bool = False
    forms: tuple[str, ...] = ()
    shard_size: str = "5GB"
    stored: str = "float32"
    merged: str = "float32"
    max_length: int | None = None
    allow: tuple[str, ...] = ()
    compiled: bool = False


def _of(group: str) -> Any:
    """Makes specimens of one group: `of(model_type, what is special, **changes of the config, or of the specimen)`."""

    def specimen(
        model_type: str, special: str = "", *, config: Mapping[str, Any] | None = None, **own: Any
    ) -> Specimen:
        name = f"{model_type}, {special}" if special else model_type
        return Specimen(name=name, group=group, model_type=model_type, changes=config or {}, **own)

    return specimen


_dense, _window, _place = _of("Dense attention"), _of("Windows"), _of("Positions")
_state, _hybrid, _experts = _of("State space"), _of("Hybrids"), _of("Mixtures of experts")
_form, _dtype, _other = _of("Forms of checkpoints"), _of("Mixed dtypes"), _of("Multimodal bases")
_foreign = _of("No causal language models")

_MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_GROUPED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
_FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_QWEN_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "depth": 3,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 6.0],
    "original_max_position_embeddings": 64,
}
_THETA = {"rope_theta": 10000.0}
_LLAMA = {name: COMMON[name] for name in COMMON if name not in ("bos_token_id", "eos_token_id", "pad_token_id")}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ZOO: tuple[Specimen, ...] = (
    *map(
        _dense,
        (
            "llama",
            "mistral",
            "ministral3",
            "qwen2",
            "qwen3",
            "gemma",
            "phi",
            "gpt2",
            "gpt_neox",
            "gpt_bigcode",
            "opt",
            "stablelm",
            "olmo",
            "olmo2",
            "starcoder2",
            "nemotron",
            "glm",
            "glm4",
            "smollm3",
            "ernie4_5",
            "apertus",
            "arcee",
            "bitnet",
            "diffllama",
            "helium",
            "hunyuan_v1_dense",
            "hyperclovax",
            "internlm3",
            "iquestcoder",
            "jais2",
            "nanochat",
            "persimmon",
            "seed_oss",
            "vaultgemma",
            "biogpt",
            "openai-gpt",
            "gpt_neox_japanese",
            "granite",
            "beam",
            "flint",
            "gpt-sw3",
        ),
    ),
    _dense("phi3", config={"pad_token_id": 0}),
    _dense("cohere", config={"logit_scale": 1.0}),
    _dense("gptj", config={"rotary_dim": 4}),
    _dense("codegen", config={"rotary_dim": 4}),
    _dense("ctrl", config={"dff": 48}),
    _dense("xglm", config={"init_std": 0.3, "ffn_dim": 48}),
    _dense("falcon", config={"head_dim": ...}),
    _dense("falcon", "new decoder", config={"head_dim": ..., "new_decoder_architecture": True, "num_kv_heads": 2}),
    _dense("stablelm", "parallel residual", config={"use_parallel_residual": True, "qk_layernorm": True}),
    _dense("minicpm3", config={**_MLA, "head_dim": ..., "num_key_value_heads": 4}),
    _dense("youtu", config={**_MLA, "num_key_value_heads": 4, "pad_token_id": ...}),
    _dense("youtu", "pad token", config={**_MLA, "num_key_value_heads": 4}),  # transformers zeroes its embedding
    _dense("hrm_text", config={"initializer_range": 0.1}),  # its many rounds would amplify the last digits
    _dense("llama", "tied", config={"tie_word_embeddings": True}),
    _dense("qwen2", "tied", config={"tie_word_embeddings": True}),
    _dense("moshi", config={"ffn_dim": 96}),
    _window("mistral", "24", config={"sliding_window": 24}),
    _window(
        "qwen2", "24 in one layer", config={"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    ),
    _window("gemma2", "24", config={"sliding_window": 24}),
    _window(
        "gemma3_text",
        "24",
        config={
            "sliding_window": 24,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    _window(
        "gemma4_unified_text",
        "24",
        config={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 8},
    ),
    _window(
        "cohere2",
        "24",
        config={"logit_scale": 1.0, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    _window(
        "exaone4",
        "24",
        config={
            "sliding_window": 24,
            "sliding_window_pattern": 2,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    _window("olmo3", "24", config={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}),
    _window("phi3", "24", config={"sliding_window": 24, "pad_token_id": 0}),
    _window("starcoder2", "24", config={"sliding_window": 24}),
    _window("granite_swa", "24", config={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}),
    _window("ministral", "24", config={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}),
    _window("cwm", "24", config={"sliding_window": 24, "layer_types": ["full_attention", "sliding_attention"]}),
    _window(
        "modernbert-decoder",
        "local attention 24",
        config={
            "local_attention": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    _window(
        "gpt_neo",
        "24",
        config={
            "head_dim": ...,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 24,
            "num_layers": 2,
            "num_heads": 4,
        },
    ),
    _window("doge", "keeps 24", config={"keep_window_size": 24}),
    _window(
        "llama4_text",
        "chunks of 32",
        config={
            "attention_chunk_size": 32,
            "num_local_experts": 2,
            "interleave_moe_layer_step": 4,
            "intermediate_size_mlp": 48,
            "moe_layers": [],
        },
    ),
    _place("bloom", "ALiBi"),
    _place("mpt", "ALiBi"),
    _place("falcon", "ALiBi", config={"head_dim": ..., "alibi": True}),
    _place(
        "phi3",
        "long-rope",
        config={"pad_token_id": 0, "original_max_position_embeddings": 64, "rope_parameters": _LONG_ROPE},
    ),
    _place("llama", "long-rope", config={"rope_parameters": _LONG_ROPE}),
    _place("qwen3", "long-rope", config={"rope_parameters": _LONG_ROPE}),
    _place("llama", "dynamic NTK", config={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **_THETA}}),
    _place(
        "llama",
        "dynamic NTK beyond its length",
        max_length=512,
        config={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **_THETA}},
    ),
    _place(
        "olmo2",
        "dynamic NTK beyond its length",
        max_length=512,
        config={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **_THETA}},
    ),
    _place("llama", "beyond its length", max_length=512),
    _place(
        "llama",
        "llama3 rope",
        config={
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                **_THETA,
            }
        },
    ),
    _place(
        "qwen3",
        "yarn",
        config={
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **_THETA}
        },
    ),
    _place(
        "gpt_neox",
        "linear rope",
        config={"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5, **_THETA}},
    ),
    _place("gpt2", "pack shorter than the model", max_length=100),
    _place("xglm", "sinusoidal", config={"init_std": 0.3, "ffn_dim": 48, "scale_embedding": False}),
    _state("mamba", config={"state_size": 8, "time_step_rank": 2}),
    _state("falcon_mamba", config={"state_size": 8, "time_step_rank": 2}),
    _state("mamba2", config={"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16}),
    _state("rwkv", config={"attention_hidden_size": 32, "context_length": 256}),
    _state(
        "xlstm",
        config={
            "hidden_size": 64,
            "num_heads": 2,
            "qk_dim_factor": 1.0,
            "num_blocks": 2,
            "chunk_size": 16,
            "ffn_round_up_to_multiple_of": 8,
        },
    ),
    _hybrid(
        "jamba",
        config={
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 2,
            "use_mamba_kernels": False,
        },
    ),
    _hybrid(
        "bamba",
        config={
            **_MAMBA2,
            "attn_layer_indices": [1],
            "rope_parameters": {**_THETA, "partial_rotary_factor": 1.0, "rope_type": "default"},
        },
    ),
    _hybrid(
        "zamba2",
        config={
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 16,
            "use_mamba_kernels": False,
            "adapter_rank": 4,
        },
    ),
    _hybrid(
        "recurrent_gemma",
        config={
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 24,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    _hybrid("lfm2", config={"layer_types": ["conv", "full_attention"]}),
    _hybrid("falcon_h1", config={**_MAMBA2, "mamba_d_ssm": 64}),
    _hybrid(
        "granitemoehybrid",
        config={
            **_MAMBA2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "position_embedding_type": "rope",
        },
    ),
    _hybrid("qwen3_5_text", config={**_LINEAR, "layer_types": ["linear_attention", "full_attention"]}),
    _hybrid("olmo_hybrid", config={**_LINEAR, "layer_types": ["linear_attention", "full_attention"]}),
    _hybrid(
        "qwen3_next",
        config={
            **_LINEAR,
            **_FEW,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 24,
        },
    ),
    _hybrid(
        "nemotron_h",
        config={
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": ...,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "use_mamba_kernels": False,
        },
    ),
    _hybrid("lfm3", config={"layer_types": ["conv", "full_attention"], "sliding_window": 24}),
    _hybrid(
        "minimax",
        config={
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "block_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    _hybrid(
        "kimi_linear",
        config={
            **_MLA,
            "q_lora_rank": ...,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": ...,
            "num_key_value_heads": 4,
        },
    ),
    _experts("mixtral", config={"num_local_experts": 4}),
    _experts("qwen2_moe", config={**_FEW, "shared_expert_intermediate_size": 24}),
    _experts("qwen3_moe", config=_FEW),
    _experts("olmoe", config={"num_experts": 4, "num_experts_per_tok": 2}),
    _experts("flex_olmo", config={"num_experts": 4, "num_experts_per_tok": 2}),
    _experts(
        "deepseek_v2", config={**_MLA, **_GROUPED, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 8}
    ),
    _experts("deepseek_v3", config={**_MLA, **_GROUPED, "first_k_dense_replace": 1, "num_key_value_heads": 4}),
    _experts(
        "deepseek_v32",
        config={
            **_MLA,
            **_GROUPED,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "index_topk": 16,
            "index_head_dim": 16,
            "index_n_heads": 2,
        },
    ),
    _experts(
        "deepseek_v32",
        "dense layers alone",
        config={
            **_MLA,
            **_GROUPED,
            "first_k_dense_replace": 2,
            "mlp_layer_types": ["dense", "dense"],
            "num_key_value_heads": 4,
            "index_topk": 16,
            "index_head_dim": 16,
            "index_n_heads": 2,
        },
    ),
    _experts("glm4_moe", config={**_GROUPED, "first_k_dense_replace": 1}),
    _experts("ernie4_5_moe", config={"moe_intermediate_size": 24, "moe_num_experts": 4, "moe_k": 2}),
    _experts("phimoe", config={"num_local_experts": 4}),
    _experts("granitemoe", config={"num_local_experts": 4}),
    _experts("gpt_oss", config={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}),
    _experts("jetmoe", config={"num_local_experts": 4, "kv_channels": 8}),
    _experts("dots1", config={**_GROUPED, "first_k_dense_replace": 1, "n_shared_experts": 1}),
    _experts(
        "jamba",
        "experts",
        config={
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 2,
            "use_mamba_kernels": False,
        },
    ),
    _experts("lfm2_moe", config={**_FEW, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]}),
    _experts("afmoe", config={**_FEW, "num_dense_layers": 1, "num_shared_experts": 1, "sliding_window": 24}),
    _experts("cohere2_moe", config={**_FEW, "logit_scale": 1.0, "sliding_window": 24}),
    _experts("exaone_moe", config={**_FEW, "n_group": 2, "topk_group": 1, "sliding_window": 24}),
    _experts("glm4_moe_lite", config={**_MLA, **_GROUPED, "first_k_dense_replace": 1, "num_key_value_heads": 4}),
    _experts("hunyuan_v1_moe", config={"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 24}),
    _experts(
        "longcat_flash",
        config={
            **_MLA,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 24,
        },
    ),
    _experts("minimax_m2", config={"num_local_experts": 4, "num_experts_per_tok": 2}),
    _experts(
        "qwen3_5_moe_text",
        config={
            **_FEW,
            **_LINEAR,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    _experts("solar_open", config={**_GROUPED, "n_shared_experts": 1}),
    _experts("inkling2_text", config={**_GROUPED, "sliding_window": 24}),
    _form("llama", "sharded", shard_size="30KB"),
    _form("gpt2", "without prefix", forms=("without prefix",)),
    _form("bloom", "without prefix", forms=("without prefix",)),
    _form("opt", "without prefix", forms=("without prefix",)),
    _form("bert", "gamma and beta", config={"is_decoder": True}, forms=("gamma and beta",)),
    _form(
        "roberta",
        "gamma and beta",
        config={"is_decoder": True, "max_position_embeddings": 260},
        forms=("gamma and beta",),
    ),
    _form("gemma", "both tied names", forms=("both tied names",)),
    _form("llama", "old buffers", forms=("old buffers",)),
    _form("llama", "value head", forms=("value head",)),
    _form("llama", "_orig_mod.", forms=("_orig_mod.",)),
    _form("llama", "pickled, not allowed", forms=("pickled",)),
    _form("llama", "pickled", forms=("pickled",), allow=("pickle_weights",)),
    _form("gpt2", "pickled as before torch 1.6", forms=("pickled as before torch 1.6",), allow=("pickle_weights",)),
    _form("remote", "code not allowed", remote_code=True),
    _form("remote", "code", remote_code=True, allow=("remote_code",)),
    _form("remote", "code, sharded", remote_code=True, allow=("remote_code",), shard_size="10KB"),
    _dtype("llama", "bfloat16", stored="bfloat16", merged="bfloat16"),
    _dtype("llama", "float16 of bfloat16", stored="bfloat16", merged="float16"),
    _dtype("gemma2", "float32 of bfloat16", stored="bfloat16"),
    _dtype("llama", "norms stored in float32", stored="bfloat16", merged="bfloat16", forms=("norms in float32",)),
    _dtype("qwen3", "norms stored in float32", stored="float16", merged="float16", forms=("norms in float32",)),
    _dtype(
        "phi3",
        "long-rope in bfloat16",
        stored="bfloat16",
        merged="bfloat16",
        config={"pad_token_id": 0, "original_max_position_embeddings": 64, "rope_parameters": _LONG_ROPE},
    ),
    _dtype("mixtral", "bfloat16", stored="bfloat16", merged="bfloat16", config={"num_local_experts": 4}),
    _dtype("rwkv", "float16", merged="float16", config={"attention_hidden_size": 32, "context_length": 256}),
    _dtype("mamba", "bfloat16", stored="bfloat16", merged="bfloat16", config={"state_size": 8, "time_step_rank": 2}),
    _dtype(
        "gpt_oss",
        "float16",
        stored="bfloat16",
        merged="float16",
        config={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
    ),
    _dtype(
        "gpt_oss",
        "float16, compiled",
        stored="bfloat16",
        merged="float16",
        config={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
        compiled=True,
    ),
    _dtype(
        "rwkv",
        "float16, compiled",
        stored="bfloat16",
        merged="float16",
        config={"attention_hidden_size": 32, "context_length": 256},
        compiled=True,
    ),
    _dtype("qwen3", "float16 of bfloat16, compiled", stored="bfloat16", merged="float16", compiled=True),
    _dtype(
        "qwen3_5_text",
        "bfloat16",
        stored="bfloat16",
        merged="bfloat16",
        config={**_LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    ),
    _other(
        "gemma3",
        "written as image-text-to-text",
        nested=True,
        written_as="AutoModelForImageTextToText",
        config={
            "text_config": {
                **_LLAMA,
                **_IDS,
                "model_type": "gemma3_text",
                "sliding_window": 24,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 4,
            "eoi_token_index": 5,
            "image_token_index": 6,
            **_IDS,
        },
    ),
    _other(
        "qwen3_5",
        "written as image-text-to-text",
        nested=True,
        written_as="AutoModelForImageTextToText",
        config={
            "text_config": {
                **_LLAMA,
                **_IDS,
                **_LINEAR,
                "model_type": "qwen3_5_text",
                "layer_types": ["linear_attention", "full_attention"],
            },
            "vision_config": _QWEN_VISION,
            "image_token_id": 6,
            "video_token_id": 7,
            "vision_start_token_id": 8,
            "vision_end_token_id": 9,
            **_IDS,
        },
    ),
    _other(
        "qwen3_5_moe",
        "written as image-text-to-text",
        nested=True,
        written_as="AutoModelForImageTextToText",
        config={
            "text_config": {
                **_LLAMA,
                **_IDS,
                **_LINEAR,
                **_FEW,
                "shared_expert_intermediate_size": 24,
                "model_type": "qwen3_5_moe_text",
                "layer_types": ["linear_attention", "full_attention"],
            },
            "vision_config": _QWEN_VISION,
            "image_token_id": 6,
            "video_token_id": 7,
            "vision_start_token_id": 8,
            "vision_end_token_id": 9,
            **_IDS,
        },
    ),
    _other(
        "llama4",
        "written as image-text-to-text",
        nested=True,
        written_as="AutoModelForImageTextToText",
        config={
            "text_config": {
                **_LLAMA,
                **_IDS,
                "model_type": "llama4_text",
                "attention_chunk_size": 32,
                "moe_layers": [],
                "num_local_experts": 2,
                "intermediate_size_mlp": 48,
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "vision_output_dim": 16,
            },
            "boi_token_index": 4,
            "eoi_token_index": 5,
            "image_token_index": 6,
            **_IDS,
        },
    ),
    _other(
        "llava",
        "no causal language model",
        nested=True,
        written_as="AutoModelForImageTextToText",
        config={
            "text_config": {**_LLAMA, **_IDS, "model_type": "llama"},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "projection_dim": 16,
            },
            "image_token_index": 6,
            **_IDS,
        },
    ),
    _foreign("bert", "is_decoder: false", config={"is_decoder": False}),
    _foreign("roberta", "is_decoder: false", config={"is_decoder": False, "max_position_embeddings": 260}),
    _foreign("electra", "is_decoder: false", config={"is_decoder": False, "embedding_size": 32}),
    _foreign("cpmant", config={"dim_head": 8, "dim_ff": 48, "prompt_types": 8, "prompt_length": 4, "init_std": 0.3}),
    _foreign("bert", "is_decoder: true", config={"is_decoder": True}),
    _foreign("electra", "is_decoder: true", config={"is_decoder": True, "embedding_size": 32}),
    _foreign("xlm", config={"causal": False}),
    _foreign("xlm", "causal", config={"causal": True}),
    _foreign(
        "bart",
        config={
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "init_std": 0.3,
        },
        written_as="AutoModelForSeq2SeqLM",
    ),
    _foreign(
        "t5",
        config={"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4},
        written_as="AutoModelForSeq2SeqLM",
    ),
)
