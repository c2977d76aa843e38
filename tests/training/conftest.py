"""Tiny random models in memory, and trainings on them that take a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from evomerge.evaluation.evaluator import CalibrationText
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.tensors.one_thread import one_thread
from evomerge.training import DamResult, DamSettings, DamStep, TrainingInputs, train_dam

VOCABULARY = 40
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
}
KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama_tied": lambda: LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(**_GPT2_SIZES),
    "gpt2_untied": lambda: GPT2Config(**_GPT2_SIZES, tie_word_embeddings=False),
}
SOURCES = ("left", "middle", "right")


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass
class Family:
    """A base and three sources near it, with texts, and a live model to train in."""

    model: Any
    weights: dict[str, dict[str, Tensor]]
    texts: dict[str, list[CalibrationText]]
    files: Path
    dtype: str
    steps: list[DamStep] = field(default_factory=list)

    @property
    def live(self) -> dict[str, Tensor]:
        return live_of(self.model)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.weights["base"]))

    def recipe(
        self, method: str = "linear", sources: Sequence[str] = SOURCES, tensors: Sequence[str] = (), **parameters: Any
    ) -> Recipe:
        options = resolve_options(method, parameters.pop("options", {}))
        resolved: Any = resolve_parameters(method, parameters, len(sources))
        rule = Rule(
            tensors=tuple(tensors) or self.names,
            method=method,
            sources=tuple(sources),
            parameters=resolved,
            options=options,
        )
        refs = {name: ModelRef(name, f"/{name}", fingerprint=name) for name in self.weights}
        return Recipe(
            base=refs["base"], sources=tuple(refs[name] for name in SOURCES), rules=(rule,), dtype=self.dtype, seed=3
        )

    def inputs(self, initial: Recipe | None = None, checkpoints: Path | None = None, seed: int = 5) -> TrainingInputs:
        return TrainingInputs(
            model=self.model,
            live=self.live,
            weights=self.weights,
            texts=self.texts,
            initial=initial or self.recipe(),
            seed=seed,
            files=self.files,
            checkpoints=checkpoints,
        )

    def start(self, initial: Recipe | None = None, checkpoints: Path | None = None, seed: int = 5, **settings: Any):
        return train_dam(self.inputs(initial, checkpoints, seed), DamSettings.model_validate(settings))

    def train(self, *arguments: Any, **settings: Any) -> DamResult:
        training = self.start(*arguments, **settings)
        self.steps = []
        while True:
            try:
                self.steps.append(next(training))
            except StopIteration as end:
                return end.value


def live_of(model: Any) -> dict[str, Tensor]:
    """The tensors of a model by name, tied ones once, as a bank gives them."""
    found: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if found.setdefault(id(tensor), name) == name}


@pytest.fixture
def family(tmp_path: Path) -> Callable[..., Family]:
    """family(kind, dtype, sources' dtype): always the same numbers, and random tokens of several lengths."""

    def build(kind: str = "llama", dtype: str = "float32", stored: str | None = None, texts: int = 6) -> Family:
        generator = torch.Generator().manual_seed(11)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(KINDS[kind]()).to(getattr(torch, dtype)).eval()
        model.requires_grad_(False)
        base = {name: tensor.to(torch.float64, copy=True) for name, tensor in live_of(model).items()}
        weights: dict[str, Mapping[str, Tensor]] = {"base": base}
        for name in SOURCES:
            weights[name] = {
                key: tensor + 0.15 * torch.randn(tensor.shape, generator=generator) for key, tensor in base.items()
            }
        target = getattr(torch, stored or dtype)
        tensors = {name: {key: tensor.to(target) for key, tensor in each.items()} for name, each in weights.items()}
        calibration = {
            name: [_text(4 + (3 * index + place) % 6, generator) for index in range(texts)]
            for place, name in enumerate(SOURCES)
        }
        return Family(model, tensors, calibration, tmp_path / "files", dtype)

    return build


def _text(length: int, generator: torch.Generator) -> CalibrationText:
    return CalibrationText(tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()), length - 2)
