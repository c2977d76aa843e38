"""Quantised tensors: 8-bit codes, which mean something only with the scales that are stored beside them.

A model that was cast to 8-bit floating-point numbers, without scales, is not quantised: its numbers are its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import InvalidInput
from evomerge.messages import some

_SETTINGS = ("quantization_config", "compression_config")


def check_settings(place: str, config: Mapping[str, Any]) -> None:
    """Raises InvalidInput where a config says that the model is quantised; `place` begins the message."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    if found := [name for name in _SETTINGS if any(part.get(name) for part in parts)]:
        raise InvalidInput(
            f"{place} is quantised: config.json has {found[0]}; give the model as it was before quantising"
        )


def check_tensors(place: str, header: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Raises InvalidInput where stored tensors are codes, as some quantisers write them without a word in the config.

    Args:
        place: begins the message.
        header: name -> (shape, dtype name).
    """
    scaled = {_module(name) for name in header if _is_scale(name)}
    codes = [
        name
        for name, (_, dtype) in sorted(header.items())
        if dtype.startswith(("float8", "int8", "uint8")) and _module(name) in scaled and not _is_scale(name)
    ]
    if codes:
        raise InvalidInput(
            f"{place} is quantised: it stores scales beside the 8-bit tensors {some(codes)}; give the model as it was "
            "before quantising"
        )


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_scale(name: str) -> bool:
    return "scale" in name.rpartition(".")[2]
