"""The engine over a live model of transformers: its weights change in place, its requests are arranged once.

Covered: causal language models; log-likelihoods over prefix trees or flat batches, and greedy texts. Not covered: texts
that only another way of generating gives (sampling, beams, penalties), which are left `Unwritten`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from evomerge.engine.batching import ANY_SCORING, ANY_WRITING, Scoring, Writing, find_scoring, find_writing
from evomerge.engine.flat import FlatLoglikelihoods
from evomerge.engine.greedy import GreedyTexts, Reader, cut_may_move, end_tokens
from evomerge.engine.interim import InterimAnswers, RunPlan
from evomerge.engine.live_state import LiveState
from evomerge.engine.model_check import check_model
from evomerge.engine.protocol import (
    ContinuableEngine,
    Interim,
    Lengths,
    Loglikelihoods,
    Pair,
    Prompt,
    Requests,
    Responses,
    Unwritten,
    run_through,
)
from evomerge.engine.special_tokens import touches
from evomerge.engine.tree import TreeLoglikelihoods
from evomerge.errors import InvalidInput, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Result = TypeVar("_Result")

SHORTEST = 128  # tokens that a sequence of a batch may have in any case: shorter ones come in larger batches

_ALONE = Unwritten()  # where lm-eval lets a text depend on its batch, it is what a batch of one gives


@dataclass(frozen=True, kw_only=True)
class PreparedRequests:
    """Requests arranged for one live model.

    Attributes:
        scored: the log-likelihoods among them.
        texts: the texts that are written by greedy decoding here; None where there are none.
        written: their places among the prompts.
        responses: a text for each prompt, as far as it is known beforehand: left to the evaluator.
    """

    scored: Loglikelihoods
    texts: GreedyTexts | None
    written: Sequence[int]
    responses: Sequence[str | Unwritten]

    @property
    def tokens(self) -> int:
        """Tokens that the last run forwarded, padding among them, but for those of texts that were left."""
        return self.scored.tokens + (self.texts.tokens if self.texts else 0)

    @property
    def passes(self) -> int:
        """Passes of a run, those of texts that were left not among them."""
        return len(self.scored.passes) + (self.texts.passes if self.texts else 0)

    def interim(self, answers: bytes | None, device: torch.device) -> InterimAnswers:
        """The answers of an earlier run of these requests, or those before the first pass."""
        plan = RunPlan(
            scored=self.scored.passes, written=self.texts.passes if self.texts else 0, texts=len(self.written)
        )
        found = None if answers is None else plan.read(answers, device)
        return found or plan.nothing()


class TransformersEngine:
    """Runs requests on a live model. See `Engine`.

    Args:
        model: a causal language model in eval mode.
        reader: decoding functions for the texts that it writes.
        max_length: tokens that the model can hold.
        batch_size: sequences in a forward pass.
        state: the model's state before its first pass; that of now without it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: Reader,
        *,
        max_length: int,
        batch_size: int,
        state: LiveState | None = None,
    ) -> None:
        self.model = model
        self._reader = reader
        self._max_length = max_length
        self._batch_size = batch_size
        self._state = state or LiveState(model)
        self._sharing: dict[Lengths, tuple[Scoring, Writing]] = {}
        self._cuts_stay: dict[tuple[str, ...], bool] = {}  # by stop strings

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.load`. Tensors are copied into the model's own."""
        if weights:
            write_weights(self.model, weights)
        self._state.restore()

    def prepare(self, requests: Requests, lengths: Lengths) -> PreparedRequests:
        """See `Engine.prepare`. Trial passes run with the loaded weights, once for the same lengths."""
        scoring, writing = self.sharing(lengths)
        budget = self._batch_size * max(requests.lengths(self._max_length).longest, SHORTEST)
        written = [at for at, prompt in enumerate(requests.prompts) if prompt.plain and writing.prefixes]
        return PreparedRequests(
            scored=self._loglikelihoods(requests.pairs, scoring, budget),
            texts=self._texts([requests.prompts[at] for at in written], budget),
            written=written,
            responses=[self._left(prompt, writing) for prompt in requests.prompts],
        )

    def writes_alike_in_company(self, prompt: Prompt) -> bool:
        """Whether nothing in a prompt lets lm-eval's own text of it depend on the others of a batch.

        Settings of its own may: a limit that counts padding, beams. So may stop strings: lm-eval continues a text until
        all of its batch have ended, which adds what would never have been written alone where a stop string is in the
        name of a special token, or what moves the cut.
        """
        if prompt.stops not in self._cuts_stay:
            names = [self._reader.decode_all([token]) for token in self._reader.special - end_tokens(self.model)]
            named = any(touches(stop, name) for stop in prompt.stops for name in names)
            self._cuts_stay[prompt.stops] = not named and not cut_may_move(prompt.stops, self._reader)
        return prompt.plain and self._cuts_stay[prompt.stops]

    def run(self, prepared: PreparedRequests) -> Responses:
        """See `Engine.run`."""
        return run_through(self.run_by_passes(prepared))

    def run_by_passes(
        self, prepared: PreparedRequests, answers: bytes | None = None
    ) -> Generator[Interim, None, Responses]:
        """See `ContinuableEngine.run_by_passes`."""
        reset, so_far = self._state.reset, prepared.interim(answers, self.model.device)

        def told(passes: Generator[None, None, _Result]) -> Generator[Interim, None, _Result]:
            while True:
                try:
                    next(passes)
                except StopIteration as end:
                    result: _Result = end.value
                    return result
                yield Interim(passes=so_far.passes, of=prepared.passes, answers=so_far.to_bytes)

        loglikelihoods = yield from told(prepared.scored.by_passes(self.model, reset, so_far.scored))
        texts = list(prepared.responses)
        found: list[str | None] = []
        if prepared.texts:
            found = yield from told(prepared.texts.by_passes(self.model, reset, so_far.written))
        for at, text in zip(prepared.written, found, strict=True):
            texts[at] = _ALONE if text is None else text
        return Responses(loglikelihoods, texts, prepared.scored.tokens + so_far.written.forwarded)

    def sharing(self, lengths: Lengths) -> tuple[Scoring, Writing]:
        """Ways for requests of these lengths to share forward passes, tried out with the loaded weights.

        Raises:
            InvalidInput: the model cannot be scored at these lengths, see `check_model`.
            MergeError: the loaded weights compute no numbers.
        """
        if lengths not in self._sharing:
            self._sharing[lengths] = self._find_sharing(lengths)
        return self._sharing[lengths]

    def _find_sharing(self, lengths: Lengths) -> tuple[Scoring, Writing]:
        model, state = self.model, self._state
        if lengths.scored or lengths.written:
            check_model(model, state, lengths.shortest, lengths.longest)
        try:
            scoring = find_scoring(model, lengths.scored, state.reset) if lengths.scored else ANY_SCORING
            writing = find_writing(model, lengths.written, state.reset) if lengths.written else ANY_WRITING
        finally:  # what trial passes leave in the model must not be taken for its state before the first pass
            state.restore()
        return scoring, writing

    def _left(self, prompt: Prompt, writing: Writing) -> Unwritten:
        """A text that is left to the evaluator, which may write it in batches only if they cannot change it."""
        return Unwritten(self._batch_size) if writing.padding and self.writes_alike_in_company(prompt) else _ALONE

    def _loglikelihoods(self, pairs: Sequence[Pair], scoring: Scoring, budget: int) -> Loglikelihoods:
        device = self.model.device
        if scoring.prefixes:
            hidden = self.model.config.get_text_config().hidden_size
            return TreeLoglikelihoods(pairs, self._max_length, budget=budget, hidden=hidden, device=device)
        batch_size = self._batch_size if scoring.company else 1
        return FlatLoglikelihoods(pairs, self._max_length, batch_size, device, padding=scoring.padding)

    def _texts(self, prompts: Sequence[Prompt], budget: int) -> GreedyTexts | None:
        if not prompts:
            return None
        ends = end_tokens(self.model)
        return GreedyTexts(prompts, self._reader, ends, budget=budget, device=self.model.device)


def write_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into those of a live model, all or none.

    Args:
        weights: name in the model -> tensor of the same shape.

    Raises:
        InvalidInput: see `Engine.load`.
    """
    own = model.state_dict()
    for name, tensor in weights.items():
        if name not in own:
            raise unknown_name("tensor of the model", name, own)
        if tensor.shape != own[name].shape:
            raise InvalidInput(
                f"tensor {name!r} has the shape {list(tensor.shape)}, that of the model has "
                f"{list(own[name].shape)}; load weights of the same architecture"
            )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def _proof(engine: TransformersEngine) -> ContinuableEngine[PreparedRequests]:
    return engine
