"""The engine over vLLM: the live model's weights are sent to it for each candidate, requests are its prompts of tokens.

Covered: log-likelihoods, from the log-probabilities of prompt tokens, and greedy texts. Not covered: texts that greedy
decoding does not give, and those in which vLLM ends at another place than lm-eval would, which are left `Unwritten`;
the evaluator then writes them with the live model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import SamplingParams

from evomerge.engine.greedy import Reader, cut_may_move, end_tokens, text_of
from evomerge.engine.protocol import (
    BoundedEngine,
    Lengths,
    Loglikelihood,
    Prompt,
    Requests,
    Responses,
    Unwritten,
    check_pair,
)
from evomerge.engine.transformers_engine import write_weights
from evomerge.errors import InvalidInput
from evomerge.prefix_tree import Tokens
from evomerge.vllm_engine.prompt_scores import RowScores, as_prompt, number_of, score_rows
from evomerge.vllm_engine.swap_check import SwapCheck
from evomerge.vllm_engine.weight_sender import WeightSender

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class VllmRequests:
    """Requests as vLLM takes them.

    Attributes:
        rows: distinct prompts whose tokens are scored.
        scored: for each pair its row, and the number of tokens at its end that are scored.
        prompts: what texts are asked for.
    """

    rows: tuple[Tokens, ...]
    scored: tuple[tuple[int, int], ...]
    prompts: tuple[Prompt, ...]


class VllmEngine:
    """Answers requests by a `vllm.LLM`, with the weights of a live model. See `Engine`.

    Args:
        llm: a started `vllm.LLM`.
        sender: sends it the weights of `model`.
        check: made before the first requests are prepared.
        reader: decodes the texts that are written.
        max_length: tokens that are read at most, as the evaluator counts them.
        longest: tokens that a sequence of vLLM may have, the written ones included.
    """

    def __init__(
        self,
        llm: Any,
        sender: WeightSender,
        *,
        check: SwapCheck,
        model: PreTrainedModel,
        reader: Reader,
        max_length: int,
        longest: int,
    ) -> None:
        self._llm = llm
        self._sender = sender
        self._check: SwapCheck | None = check
        self._model = model
        self._reader = reader
        self._max_length = max_length
        self._longest = longest
        self._ends = sorted(end_tokens(model))

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.load`. Tensors are copied into the live model, all of whose weights are then sent.

        Raises:
            InvalidInput: also where vLLM has not reset its prefix cache.
        """
        if weights:
            write_weights(self._model, weights)
        self._sender.send()

    def prepare(self, requests: Requests, lengths: Lengths) -> VllmRequests:
        """See `Engine.prepare`. The first call makes the self-check; vLLM itself arranges what shares a pass.

        Raises:
            InvalidInput: also where the self-check finds other weights than those that were sent.
        """
        self.check_requests(requests)
        rows: dict[Tokens, int] = {}
        scored = []
        for pair in requests.pairs:
            row = tuple([*pair[0], *pair[1]][-(self._max_length + 1) :])
            scored.append((rows.setdefault(row, len(rows)), len(pair[1])))
        if self._check is not None:
            self._check.run()
            self._check = None
        return VllmRequests(rows=tuple(rows), scored=tuple(scored), prompts=tuple(requests.prompts))

    def check_requests(self, requests: Requests) -> None:
        """See `BoundedEngine.check_requests`."""
        for context, rest in requests.pairs:
            check_pair((context, rest), self._max_length)
            self._check_length(min(len(context) + len(rest), self._max_length + 1))
        for prompt in requests.prompts:
            if prompt.plain:  # any other is written by the live model
                self._check_room(prompt)

    def _check_length(self, tokens: int) -> None:
        """Check a row, behind which vLLM writes a token whether it is asked for or not."""
        if tokens + 1 > self._longest:
            raise InvalidInput(
                f"a request has {tokens} tokens, but vLLM holds {self._longest} with the one that it writes behind "
                f"them; set max_length of the evaluator to {self._longest - 2} or less, or write engine: transformers"
            )

    def _check_room(self, prompt: Prompt) -> None:
        """Check a text, which vLLM would end without a word where its room ends: other text, other score.

        Nor is the prompt cut here to make room. lm-eval cuts it to `max_length` less the tokens to be written, which
        has been done already; a second bound would be part of every score, and named nowhere.
        """
        if len(prompt.tokens) + prompt.limit > self._longest:
            raise InvalidInput(
                f"a prompt has {len(prompt.tokens)} tokens and its text up to {prompt.limit} (max_gen_toks), but vLLM "
                f"holds {self._longest} of both (max_model_len) and would end the text early; raise max_model_len in "
                f"engine_args, lower max_gen_toks of the task, or set max_length of the evaluator to {self._longest} "
                "or less, to which lm-eval cuts prompts"
            )

    def run(self, prepared: VllmRequests) -> Responses:
        """See `Engine.run`."""
        scores = score_rows(self._llm, prepared.rows) if prepared.rows else []
        texts, tokens = self._write(prepared.prompts)
        return Responses(
            [_loglikelihood(scores[row], count) for row, count in prepared.scored],
            texts,
            tokens + sum(map(len, prepared.rows)),
        )

    def _write(self, prompts: Sequence[Prompt]) -> tuple[list[str | Unwritten], int]:
        """The texts, and the tokens that were read and written for them."""
        texts: list[str | Unwritten] = [Unwritten()] * len(prompts)
        plain = [at for at, prompt in enumerate(prompts) if prompt.plain]
        if not plain:
            return texts, 0
        tokens = 0
        asked = [self._asked(prompts[at]) for at in plain]
        outputs = self._llm.generate([as_prompt(prompts[at].tokens) for at in plain], asked, use_tqdm=False)
        for at, output in zip(plain, outputs, strict=True):
            texts[at] = self._text(output.outputs[0], prompts[at].stops)
            tokens += len(prompts[at].tokens) + len(output.outputs[0].token_ids)
        return texts, tokens

    def _asked(self, prompt: Prompt) -> Any:
        """Greedy decoding up to the ends of the model's own generation, and the stop strings where vLLM may stop."""
        stops = [] if cut_may_move(prompt.stops, self._reader) else list(prompt.stops)
        return SamplingParams(
            temperature=0.0,
            max_tokens=prompt.limit,
            stop=stops,
            stop_token_ids=self._ends,
            ignore_eos=True,
            skip_special_tokens=False,
            logprobs=1,
        )

    def _text(self, written: Any, stops: Sequence[str]) -> str | Unwritten:
        tokens = [int(token) for token in written.token_ids]
        for token, logprobs in zip(tokens, written.logprobs, strict=True):
            number_of(logprobs, token)
        text = text_of(tokens, stops, self._reader, self._ends)
        stopped_at = written.stop_reason
        if text is None or (isinstance(stopped_at, str) and stopped_at not in self._reader.decode_all(tokens)):
            return Unwritten()
        return text


def _loglikelihood(row: RowScores, count: int) -> Loglikelihood:
    return sum(row.values[-count:]), all(row.greedy[-count:])


def _proof(engine: VllmEngine) -> BoundedEngine[VllmRequests]:
    return engine
