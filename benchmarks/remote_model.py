"""A small language model that transformers does not know: what `allow: [remote_code]` lets a checkpoint bring along.

Copied into checkpoints as `modeling_remote.py`. A token sees a decaying mean of the tokens before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class RemoteConfig(PreTrainedConfig):  # type: ignore[misc]
    model_type = "remote-mean"

    def __init__(
        self,
        vocab_size: int = 100,
        hidden_size: int = 32,
        num_hidden_layers: int = 2,
        max_position_embeddings: int = 256,
        **rest: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **rest})


class RemoteLayer(nn.Module):
    def __init__(self, config: RemoteConfig) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up_proj = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        length = hidden.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        rate = torch.nn.functional.softplus(self.decay)
        weight = torch.exp(-rate * distance.clamp(min=0)[..., None]) * (distance >= 0)[..., None]
        past = torch.einsum("tsh,bsh->bth", weight / weight.sum(1, keepdim=True), hidden)
        return hidden + torch.tanh(self.up_proj(torch.cat([self.norm(hidden), past], -1)))


class RemoteModel(PreTrainedModel):  # type: ignore[misc]
    config_class = RemoteConfig
    base_model_prefix = "model"

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(RemoteLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class RemoteForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    config_class = RemoteConfig
    base_model_prefix = "model"

    def __init__(self, config: RemoteConfig) -> None:
        super().__init__(config)
        self.model = RemoteModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids)))

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}
