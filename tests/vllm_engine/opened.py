"""An engine over vLLM, the fake or the real one, for a live model and the folder of its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_pack import make_model, make_tokenizer

from evomerge.engine.greedy import Reader
from evomerge.engine.live_state import LiveState
from evomerge.engine.special_tokens import special_tokens
from evomerge.recipe import ModelRef


@dataclass
class View:
    """A live model as an evaluator shows it to an engine."""

    model: Any
    reader: Reader
    state: LiveState
    max_length: int


def reader(tokenizer: Any | None = None) -> Reader:
    tokenizer = tokenizer or make_tokenizer()
    return Reader(
        decode=lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        decode_all=lambda tokens: str(tokenizer.decode(tokens)),
        special=special_tokens(tokenizer),
    )


def write_base(folder: Path, model: Any | None = None) -> Path:
    """The folder of a tiny base."""
    (model or make_model(0)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def open_engine(folder: Path, model: Any, *, max_length: int = 64, **arguments: Any) -> Any:
    """A new engine for a live model; `arguments` are those of `vllm.LLM`."""
    from evomerge.vllm_engine.engine_opener import VllmOpener

    view = View(model=model, reader=reader(), state=LiveState(model), max_length=max_length)
    return VllmOpener(ModelRef("base", str(folder)), arguments)(view)


def weights_of(seed: int) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in make_model(seed).state_dict().items()}
