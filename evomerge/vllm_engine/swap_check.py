"""The self-check before the first batch: vLLM scores weights A, B and A as transformers does, on made-up tokens.

B is A with the tensors of the first layer and the embeddings doubled. For both, the log-probabilities of vLLM are
compared with those of the live model, so that stale weights are found, also where only some are stale; and those of a
continuation that may be read through the prefix cache with those of the same tokens read without it, so that a cache is
found that still has keys and values of the weights before. Not covered: tensors that the live model keeps in another
form (stacked experts), which are the same in A and B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from vllm import SamplingParams

from evomerge.engine.live_state import LiveState
from evomerge.engine.probe import made_up_tokens
from evomerge.engine.protocol import not_a_number
from evomerge.errors import InvalidInput
from evomerge.prefix_tree import Tokens
from evomerge.vllm_engine.prompt_scores import as_prompt, number_of, score_rows
from evomerge.vllm_engine.weight_sender import WeightSender

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evomerge.checkpoints.source import Source

LENGTH = 48  # tokens of the probe: three blocks of the prefix cache
CLEAR = 4.0  # B is this many tolerances from A, or more
ROUNDING = {torch.float32: 0.002, torch.bfloat16: 0.02, torch.float16: 0.02}  # tolerance per nat, at least of one nat
ADVICE = "no score of this engine can be trusted: write engine: transformers"


@dataclass(frozen=True, kw_only=True)
class _ProbeScores:
    """The probe under some weights.

    Attributes:
        expected: log-probabilities by the live model.
        found: by vLLM.
        cached, uncached: of the token that vLLM writes behind the probe, as it wrote it and read again.
    """

    expected: torch.Tensor
    found: torch.Tensor
    cached: torch.Tensor
    uncached: torch.Tensor


class SwapCheck:
    """A, B, A on one live model and one `LLM`.

    Args:
        state: the state of the live model between passes.
        longest: tokens that a sequence may have.
    """

    def __init__(
        self, llm: Any, sender: WeightSender, *, source: Source, model: PreTrainedModel, state: LiveState, longest: int
    ) -> None:
        self._llm = llm
        self._sender = sender
        self._source = source
        self._model = model
        self._state = state
        self._probe: Tokens = tuple(made_up_tokens(model, min(LENGTH, longest - 2), seed=1))

    def run(self) -> None:
        """Check, and leave vLLM with the weights of the live model.

        Raises:
            InvalidInput: vLLM answers with other weights than those that it was given.
            MergeError: the live model computes no numbers.
        """
        doubled = self._doubled()
        first = self._read({})
        self._compare(first.found, first.expected, "does not score the weights that it was given")
        second = self._read(doubled)
        if self._distance(first.expected, second.expected) < CLEAR:
            raise InvalidInput(
                "engine vllm: other weights do not change what the base scores, so that it cannot be checked"
            )
        if self._distance(second.found, first.found) <= 1:
            raise InvalidInput(f"engine vllm: vLLM scores stale weights after new ones were given to it; {ADVICE}")
        self._compare(second.found, second.expected, "scores stale weights in part after new ones were given to it")
        self._compare(second.cached, second.uncached, "keeps earlier weights' keys and values in its prefix cache")
        third = self._read({})
        self._compare(third.found, first.found, "does not score weights A, B, A with the same numbers for A")

    def _read(self, changed: Mapping[str, torch.Tensor]) -> _ProbeScores:
        """Send the live weights but for those changed, and read the probe: once more through the cache, and without."""
        self._sender.send(changed)
        expected = self._expected(changed)
        (scores,) = score_rows(self._llm, [self._probe])
        token, cached = self._write()
        (again,) = score_rows(self._llm, [(*self._probe, token)])
        return _ProbeScores(
            expected=expected,
            found=torch.tensor(scores.values, dtype=torch.float64),
            cached=torch.tensor([cached], dtype=torch.float64),
            uncached=torch.tensor(again.values[-1:], dtype=torch.float64),
        )

    def _write(self) -> tuple[int, float]:
        """The token that vLLM writes behind the probe, and its log-probability. The probe is in the cache then."""
        asked = SamplingParams(temperature=0.0, max_tokens=1, logprobs=1, ignore_eos=True, detokenize=False)
        (output,) = self._llm.generate([as_prompt(self._probe)], asked, use_tqdm=False)
        (token,), (logprobs,) = output.outputs[0].token_ids, output.outputs[0].logprobs
        return int(token), number_of(logprobs, token)

    def _expected(self, changed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tensors = {self._source.live_names[name]: tensor for name, tensor in changed.items()}
        tokens = torch.tensor([self._probe], device=self._model.device)
        self._state.reset()
        with torch.no_grad():
            logits = functional_call(self._model, tensors, (tokens,)).logits[0, :-1]
        self._state.restore()
        scores: torch.Tensor = logits.float().log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0].double().cpu()
        if scores.isnan().any():
            raise not_a_number()
        return scores

    def _doubled(self) -> dict[str, torch.Tensor]:
        """The tensors of B that are others than those of A, by their stored names."""
        live, names = self._sender.weights.live, self._source.live_names
        entries = [entry for entry in self._source.catalogue.mergeable if entry.name in names]
        chosen = [entry.name for entry in entries if entry.layer == 0 or entry.part in ("embedding", "head")]
        return {name: live[name].detach() * 2 for name in chosen or [entry.name for entry in entries]}

    def _compare(self, found: torch.Tensor, expected: torch.Tensor, fault: str) -> None:
        if not self._distance(found, expected) <= 1:
            apart = (found - expected).abs().mean()
            raise InvalidInput(f"engine vllm: vLLM {fault} ({apart:.3g} nats apart on average); {ADVICE}")

    def _distance(self, found: torch.Tensor, expected: torch.Tensor) -> float:
        """The mean distance of two sets of log-probabilities in tolerances: what rounding may change."""
        tolerance = ROUNDING.get(self._model.dtype, ROUNDING[torch.bfloat16]) * max(1.0, float(expected.abs().mean()))
        return float((found - expected).abs().mean()) / tolerance
