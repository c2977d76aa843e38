"""lm-eval's view of the live model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import LogitsProcessor, LogitsProcessorList

from evomerge.engine.greedy import Reader, end_tokens, is_plain_greedy
from evomerge.engine.live_state import LiveState
from evomerge.engine.protocol import Pair, Prompt, not_a_number
from evomerge.engine.special_tokens import special_tokens
from evomerge.errors import InvalidInput
from evomerge.evaluation.lm_eval.cached_tokenizer import CachedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PreparedLM(HFLM):  # type: ignore[misc]
    """lm-eval's view of the live model: tokenisation and generation as lm-eval does them, each text encoded once."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: CachedTokenizer, max_length: int | None, batch_size: int
    ) -> None:
        plain = tokenizer.plain
        if plain.bos_token_id is None and plain.eos_token_id is None:
            raise InvalidInput(
                "the base's tokenizer has neither a start nor an end token, which lm-eval needs before and behind a "
                "text; set bos_token or eos_token in its files"
            )
        super().__init__(pretrained=model, tokenizer=plain, max_length=max_length, batch_size=batch_size)
        self.state = LiveState(model)
        if self.backend != "causal":
            raise InvalidInput(f"{type(model).__name__} is no decoder-only language model; only those can be scored")
        self.tokenizer = tokenizer
        self._max_length = self.max_length
        self.processed = 0  # tokens read and written by lm-eval's own generation
        self.reader = Reader(
            decode=self.tok_decode,
            decode_all=partial(self.tok_decode, skip_special_tokens=False),
            special=special_tokens(plain),
            # Decoding may remove the blank before " n't" and the like: a text is only certain that much further on.
            lookahead=len(" n't") if getattr(plain, "clean_up_tokenization_spaces", False) else 0,
        )

    def pairs(self, instance: Instance) -> list[Pair]:
        """The token sequences that a request for a log-likelihood is made of: lm-eval's encoding of it."""
        if instance.request_type == "loglikelihood_rolling":
            windows = get_rolling_token_windows(
                self.tok_encode(instance.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            return [make_disjoint_window(window) for window in windows]
        context, continuation = instance.args
        if context:
            return [self._encode_pair(context, continuation)]
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if tokens and tokens[0] == self.prefix_token_id:
            return [(tokens[:1], tokens[1:])]
        return [([self.prefix_token_id], tokens)]

    def prompt(self, instance: Instance) -> Prompt:
        """A request for a text as tokens: lm-eval's encoding of it, and its reading of the settings.

        Not `plain` if only lm-eval's own way of generating can tell what it gives: with settings that change what
        greedy decoding writes, with a stop string that stops everything, and where the model's generation does not end
        at the tokenizer's end token, so that the length of a text depends on the others of its batch.

        Raises:
            InvalidInput: the text would be drawn at random, as many tokens are to be written as the model can hold, or
                nothing is to be continued.
        """
        context, settings = instance.args
        options = normalize_gen_kwargs(settings, self.max_gen_toks)
        if options.get("do_sample"):  # decided here: a task may choose it item by item, or by a temperature alone
            raise InvalidInput(
                "what the model writes would be drawn at random, so that a candidate would not score the same twice; "
                "set do_sample: false in the task's generation_kwargs"
            )
        if self.eot_token_id is None:
            raise InvalidInput("the tokenizer has no end token, at which texts end; set eos_token in its files")
        ending = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        stops = handle_stop_sequences(options.pop("until", None), eos=ending)
        limit = options.pop("max_gen_toks")
        if limit >= self.max_length:
            raise InvalidInput(
                f"the model may write {limit} tokens, but it holds {self.max_length} with the prompt; set max_gen_toks "
                "lower"
            )
        tokens, _ = self.tok_batch_encode([context], left_truncate_len=self.max_length - limit)
        if not tokens.numel():
            raise InvalidInput(f"the prompt {context!r} has no tokens, so there is nothing to continue")
        plain = (
            {"temperature": 0.0, **options} == {"temperature": 0.0, "do_sample": False}
            and all(stops)
            and self.think_end_token is None
            and is_plain_greedy(self.model)
            and self.eot_token_id in end_tokens(self.model)
        )
        return Prompt(tokens=tuple(tokens[0].tolist()), limit=limit, stops=tuple(stops), plain=plain)

    def is_cut(self, instance: Instance) -> bool:
        """Whether a prompt loses its beginning, as with lm-eval. A text that is read whole loses nothing."""
        if instance.request_type == "loglikelihood_rolling":
            return False
        if instance.request_type == "generate_until":
            tokens, _ = self.tok_batch_encode([instance.args[0]])
            return bool(tokens.shape[1] + self.prompt(instance).limit > self.max_length)
        return any(len(context) + len(rest) - 1 > self.max_length for context, rest in self.pairs(instance))

    def write(self, instances: list[Instance], batch_size: int) -> list[str]:
        """The texts that lm-eval itself gives, so many at once."""
        before, self.batch_size_per_gpu = self.batch_size, batch_size
        try:
            return self.generate_until(instances, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = before

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's own generation, on prompts with and without a leading BOS text apart.

        It adds special tokens to all prompts of a batch or to none, as the first of them begins: a text would depend
        on its neighbours.
        """
        texts: dict[int, str] = {}
        for begins in (False, True):
            places = [place for place, each in enumerate(requests) if self._begins(each) is begins]
            alike = [requests[place] for place in places]
            found = super().generate_until(alike, disable_tqdm=disable_tqdm) if alike else []
            texts.update(zip(places, found, strict=True))
        return [texts[place] for place in range(len(requests))]

    def _begins(self, request: Instance) -> bool:
        return bool(has_bos_prefix(request.args[0], self.tokenizer.bos_token))

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        self.state.reset()
        watch = _NanWatch()
        options["logits_processor"] = LogitsProcessorList([watch])
        tokens: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
        if watch.seen is not None and bool(watch.seen):
            raise not_a_number()
        self.processed += tokens.numel()
        return tokens


class _NanWatch(LogitsProcessor):  # type: ignore[misc]
    """Notices logits that are not numbers, of which greedy decoding would silently take the first token."""

    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        broken = scores.isnan().any()
        self.seen = broken if self.seen is None else self.seen | broken
        return scores
