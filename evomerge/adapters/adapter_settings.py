"""The settings of a LoRA adapter, from its adapter_config.json as PEFT writes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from evomerge.errors import InvalidInput

SETTINGS_FILE = "adapter_config.json"

# Settings under which a model computes something that no change of the base's weights does.
_UNSUPPORTED: Mapping[str, str] = {
    "use_qalora": "QA-LoRA pools the inputs of its matrices",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "kasa_config": "KaSA changes the base's weights before it trains",
    "monteclora_config": "MonteCLoRA draws its weights",
    "arrow_config": "Arrow routes between several adapters",
    "alora_invocation_tokens": "it is active after its invocation tokens only (aLoRA)",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it changes parameters of modules (target_parameters), not modules",
    "trainable_token_indices": "it trains single tokens (trainable_token_indices)",
    "lora_bias": "its matrices have biases (lora_bias)",
    "megatron_config": "its layers are Megatron's",
}
# Initialisations that move a part of the base's weights into the adapter: it fits what is left of them alone.
_MOVING = re.compile(r"pissa.*|olora|corda|loftq|lora_ga")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Numbers of an adapter that decide its weights.

    Attributes:
        rank, alpha: of modules without a pattern of their own.
        rank_pattern, alpha_pattern: regular expression, which the end of a module's name matches -> its rank or alpha;
            the first one that matches decides.
        rank_stabilised: whether a product is scaled by alpha / sqrt(rank) (rsLoRA), not alpha / rank.
        weight_decomposed: whether modules have a magnitude for each of their outputs (DoRA).
        transposed: whether weights are stored as [inputs, outputs] (GPT-2), of a base whose model class is not known.
        base: the name or path of the model that it was trained on, as its author had it; None where it names none.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    weight_decomposed: bool
    transposed: bool
    base: str | None

    def rank_of(self, module: str) -> int:
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor of a module's product B A (LoRA, arXiv 2106.09685, section 4.1; rsLoRA, arXiv 2312.03732)."""
        rank = self.rank_of(module)
        divisor = math.sqrt(rank) if self.rank_stabilised else rank
        return float(_matching(self.alpha_pattern, module, self.alpha)) / divisor

    def identity(self) -> dict[str, Any]:
        """All that decides the weights, for a fingerprint."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "rank_pattern": list(self.rank_pattern.items()),
            "alpha_pattern": list(self.alpha_pattern.items()),
            "rank_stabilised": self.rank_stabilised,
            "weight_decomposed": self.weight_decomposed,
            "transposed": self.transposed,
        }


def read_settings(content: Mapping[str, Any], file: Path) -> AdapterSettings:
    """The settings in the content of an adapter_config.json.

    Raises:
        InvalidInput: the adapter is of a kind that cannot be a source, or an entry is not as PEFT writes it.
    """
    kind = content.get("peft_type")
    if kind != "LORA":
        raise InvalidInput(
            f"{file} describes an adapter of the type {kind!r}; only LORA (with rsLoRA and DoRA) can be a source; "
            "merge it into its base, and give that model"
        )
    for name, reason in _UNSUPPORTED.items():
        if content.get(name):
            raise InvalidInput(
                f"{file}: {reason}, which no merge of weights expresses here; give an adapter without {name}, or the "
                "model that it is merged into"
            )
    begun = content.get("init_lora_weights")
    if isinstance(begun, str) and _MOVING.fullmatch(begun):
        raise InvalidInput(
            f"{file}: under init_lora_weights: {begun} the adapter fits changed weights of its base; convert it when "
            "it is saved (save_pretrained with path_initial_model_for_weight_conversion), or give the merged model"
        )
    return AdapterSettings(
        rank=_rank(content.get("r"), file),
        alpha=_number(content.get("lora_alpha"), file, "lora_alpha"),
        rank_pattern={key: _rank(value, file) for key, value in _patterns(content, "rank_pattern", file).items()},
        alpha_pattern={
            key: _number(value, file, "alpha_pattern")
            for key, value in _patterns(content, "alpha_pattern", file).items()
        },
        rank_stabilised=_switch(content, "use_rslora", file),
        weight_decomposed=_switch(content, "use_dora", file),
        transposed=_switch(content, "fan_in_fan_out", file),
        base=_base(content, file),
    )


def _matching(patterns: Mapping[str, float], module: str, other: float) -> float:
    """As PEFT chooses: the first pattern that the name, or its end from a dot on, matches."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), other)


def _patterns(content: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    patterns = content.get(name) or {}
    if not isinstance(patterns, Mapping):
        _refuse(file, name, patterns, "a mapping from module names to numbers")
    for key in patterns:
        try:
            re.compile(key)
        except re.error:
            _refuse(file, name, key, "a regular expression for module names")
    return patterns


def _rank(value: object, file: Path) -> int:
    if type(value) is not int or value < 1:
        _refuse(file, "r", value, "a rank, a whole number from 1")
    return value


def _number(value: object, file: Path, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(file, name, value, "a finite number")
    return value


def _switch(content: Mapping[str, Any], name: str, file: Path) -> bool:
    value = content.get(name) or False
    if not isinstance(value, bool):
        _refuse(file, name, value, "true or false")
    return value


def _base(content: Mapping[str, Any], file: Path) -> str | None:
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        _refuse(file, "base_model_name_or_path", base, "the name of a model")
    return base or None


def _refuse(file: Path, name: str, value: object, expected: str) -> NoReturn:
    raise InvalidInput(f"{file} gives {value!r} as {name}, expected {expected}, as PEFT writes it")
