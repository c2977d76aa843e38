"""Engines over one started vLLM: opened for a live model as the evaluator sees it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.artefacts.export_form import ExportForm, export_form
from evomerge.checkpoints.live import tensors_of
from evomerge.checkpoints.source import Source, open_source
from evomerge.engine.greedy import Reader
from evomerge.engine.live_state import LiveState
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evomerge.vllm_engine.vllm_engine import VllmEngine

AHEAD = 2  # tokens of a row that are not read by transformers: the last one, and the one that vLLM writes behind it


class OpenedModel(Protocol):
    """A live model as the evaluator sees it: its tokens, its state between passes, and the tokens that it holds."""

    model: Any
    reader: Reader
    state: LiveState

    @property
    def max_length(self) -> int: ...


class VllmOpener:
    """Opens engines for live models. vLLM is started for the first one, and serves all that follow.

    Args:
        base: the base, in whose form the weights are sent.
        arguments: of `vllm.LLM`, see `EngineSettings`.
        allow: what the user has allowed by name.
    """

    def __init__(self, base: ModelRef, arguments: Mapping[str, Any], *, allow: Collection[str] = ()) -> None:
        self._base = base
        self._arguments = dict(arguments)
        self._allow = allow
        self._source: Source | None = None
        self._form: ExportForm | None = None
        self._llm: Any = None

    def __call__(self, view: OpenedModel) -> VllmEngine:
        """An engine for a live model.

        Raises:
            InvalidInput: vLLM does not start, or the model has another depth than the base.
        """
        from evomerge.vllm_engine.started_llm import start_llm
        from evomerge.vllm_engine.swap_check import SwapCheck
        from evomerge.vllm_engine.vllm_engine import VllmEngine
        from evomerge.vllm_engine.weight_sender import LiveWeights, WeightSender

        model = view.model
        source, form = self._opened()
        _check_depth(model, source)
        longest = self._longest(source, view.max_length)
        if self._llm is None:
            dtype = str(model.dtype).removeprefix("torch.")
            self._llm = start_llm(source, dtype=dtype, longest=longest, arguments=self._arguments, config=form.config)
        sender = WeightSender(self._llm, LiveWeights(form, tensors_of(source, model), model.device))
        check = SwapCheck(self._llm, sender, source=source, model=model, state=view.state, longest=longest)
        return VllmEngine(
            self._llm,
            sender,
            check=check,
            model=model,
            reader=view.reader,
            max_length=view.max_length,
            longest=longest,
        )

    def _opened(self) -> tuple[Source, ExportForm]:
        if self._source is None or self._form is None:
            self._source = open_source(self._base, allow=self._allow, trust_fingerprint=True)
            self._form = export_form(self._source)
        return self._source, self._form

    def _longest(self, source: Source, max_length: int) -> int:
        """Tokens of a sequence: what requests of `max_length` need, as far as the model has positions."""
        given = self._arguments.get("max_model_len")
        if isinstance(given, int):
            return given
        positions = source.settings.get("max_position_embeddings")
        wanted = max_length + AHEAD
        return min(wanted, positions) if isinstance(positions, int) else wanted


def _check_depth(model: PreTrainedModel, source: Source) -> None:
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    depth = source.catalogue.depth
    if isinstance(layers, int) and depth and layers != depth:
        raise InvalidInput(
            f"engine vllm holds a model of one depth, but a candidate has {layers} layers and the base has {depth}; "
            "write engine: transformers for layer paths"
        )
