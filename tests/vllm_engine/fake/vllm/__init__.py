"""The part of vLLM's offline API that evomerge uses, over a model of transformers on the CPU.

Names and parameters are those of vLLM 0.33.0, see `recorded_api.json` beside this package. As in vLLM, weights come by
the weight transfer alone, tensors that are not sent are lost, prompts whose log-probabilities are asked for are read
without the prefix cache, and texts are written through it. `FAULTS` makes it go wrong in ways that vLLM is known for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

__all__ = ["FAULTS", "LLM", "SamplingParams"]

FAULTS: set[str] = set()  # "stale", "stale head", "keeps cache", "refuses reset"
BLOCK = 16  # tokens; only whole blocks are kept in the prefix cache


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int


@dataclass
class CompletionOutput:
    token_ids: list[int]
    text: str
    logprobs: list[dict[int, Logprob]] | None
    stop_reason: int | str | None


@dataclass
class RequestOutput:
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]


class LLM:
    """Counts its calls in `calls`."""

    started = 0

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        load_format: str = "auto",
        weight_transfer_config: Any = None,
        trust_remote_code: bool = False,
        generation_config: str = "auto",
        hf_overrides: dict[str, Any] | None = None,
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        enable_prefix_caching: bool = True,
    ) -> None:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if max_model_len and positions and max_model_len > positions:
            raise ValueError(f"max_model_len {max_model_len} is larger than the {positions} positions of the model")
        assert load_format == "dummy"
        assert weight_transfer_config.backend == "ipc"
        self._config, self._dtype = config, getattr(torch, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            self._model = AutoModelForCausalLM.from_config(config).to(self._dtype).eval()
        has_tokenizer = (Path(model) / "tokenizer_config.json").is_file()
        self._tokenizer = AutoTokenizer.from_pretrained(model) if has_tokenizer else None
        self._longest = max_model_len or positions
        self._caching = enable_prefix_caching
        self._kept: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._received: dict[str, torch.Tensor] | None = None
        self._transfers = 0
        self._packed: bool | None = None
        self.calls: dict[str, int] = defaultdict(int)
        LLM.started += 1
        LLM.latest = self

    # Weight transfer: init once, then start, update as often as there are chunks, finish.

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        self._packed = request["init_info"]["packed"]
        self.calls["init"] += 1

    def start_weight_update(self) -> None:
        if self._packed is None or self._received is not None:
            raise RuntimeError("a weight update is active already, or weight transfer was not initialised")
        self._received = {}
        self.calls["start"] += 1

    def update_weights(self, request: dict[str, Any]) -> None:
        if self._received is None:
            raise RuntimeError("no weight update is active")
        info = request["update_info"]
        for name, tensor in zip(info["names"], info["ipc_handles"]["cpu"], strict=True):
            self._received[name] = tensor.clone()
        self.calls["update"] += 1

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        if self._received is None:
            raise RuntimeError("no weight update is active")
        received, self._received = self._received, None
        self._transfers += 1
        self.calls["finish"] += 1
        if "stale" in FAULTS and self._transfers > 1:
            return
        if "stale head" in FAULTS and self._transfers > 1:
            received["lm_head.weight"] = self._model.state_dict()["lm_head.weight"].clone()
        self._load(received)

    def _load(self, received: dict[str, torch.Tensor]) -> None:
        own = self._model.state_dict()
        if not received.keys() <= own.keys():  # stored in another form than transformers keeps it in
            self._model = (
                type(self._model)
                .from_pretrained(None, config=self._config, state_dict=received, dtype=self._dtype)
                .eval()
            )
            return
        with torch.no_grad():
            for tensor in own.values():
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))  # what is not sent is lost
            for name, tensor in received.items():
                own[name].copy_(tensor)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.calls["reset"] += 1
        if "refuses reset" in FAULTS:
            return False
        if "keeps cache" not in FAULTS:
            self._kept.clear()
        return True

    # Requests.

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        self.calls["generate"] += 1
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        asked = [sampling_params] * len(rows) if isinstance(sampling_params, SamplingParams) else list(sampling_params)
        for row in rows:
            if not row or len(row) >= self._longest:
                raise ValueError(
                    f"a prompt of {len(row)} tokens plus one to write, but the model holds {self._longest}"
                )
        scored = self._scored(rows, asked)
        return [
            RequestOutput(scored.get(at), [self._written(row, params)])
            for at, (row, params) in enumerate(zip(rows, asked, strict=True))
        ]

    def _scored(self, rows: list[list[int]], asked: list[SamplingParams]) -> dict[int, list[dict[int, Logprob] | None]]:
        """Log-probabilities of prompt tokens, for rows of one length at a time."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for at, params in enumerate(asked):
            if params.prompt_logprobs is not None:
                by_length[len(rows[at])].append(at)
        found: dict[int, list[dict[int, Logprob] | None]] = {}
        for places in by_length.values():
            tokens = torch.tensor([rows[at] for at in places])
            logprobs = self._model(tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            for at, row, each in zip(places, tokens[:, 1:], logprobs, strict=True):
                found[at] = [None, *_gathered(each, row, asked[at].prompt_logprobs or 0)]
        return found

    def _written(self, row: list[int], params: SamplingParams) -> CompletionOutput:
        if params.prompt_logprobs is not None:
            return CompletionOutput([0], "", None, None)  # the one token that is always written; nobody reads it
        assert params.temperature == 0.0, "only greedy decoding is imitated"
        room = self._longest - len(row)  # where it ends, a text ends, whatever was asked for
        most = room if params.max_tokens is None else min(params.max_tokens, room)
        cache, start = self._reused(row)
        read, written, logprobs = row[start:], [], []
        while True:
            logits = self._model(torch.tensor([read]), past_key_values=cache, use_cache=True).logits[:, -1].float()
            if not written:
                self._keep(row, cache)
            token = int(logits[0].argmax())
            written.append(token)
            logprobs += _gathered(logits.log_softmax(-1), torch.tensor([token]), params.logprobs or 0)
            text, reason = self._stopped(written, params)
            ended = reason is not None or (token == self._config.eos_token_id and not params.ignore_eos)
            if ended or len(written) == most:
                return CompletionOutput(written, text, logprobs if params.logprobs is not None else None, reason)
            read = [token]

    def _stopped(self, written: list[int], params: SamplingParams) -> tuple[str, int | str | None]:
        text = ""
        if params.detokenize:
            text = self._tokenizer.decode(written, skip_special_tokens=params.skip_special_tokens)
        if written[-1] in params.stop_token_ids:
            return text, written[-1]
        found = [(text.index(stop), stop) for stop in params.stop if stop in text]
        return (text[: min(found)[0]], min(found)[1]) if found else (text, None)

    def _reused(self, row: list[int]) -> tuple[DynamicCache, int]:
        """Keys and values of the longest prefix in whole blocks that is kept; one token at least is read again."""
        for length in range((len(row) - 1) // BLOCK * BLOCK, 0, -BLOCK):
            if self._caching and (kept := self._kept.get(tuple(row[:length]))):
                cache = DynamicCache()
                for layer, (keys, values) in enumerate(kept):
                    cache.update(keys.clone(), values.clone(), layer)
                return cache, length
        return DynamicCache(), 0

    def _keep(self, row: list[int], cache: DynamicCache) -> None:
        for length in range(BLOCK, len(row) + 1, BLOCK):
            layers = [
                (layer.keys[:, :, :length].clone(), layer.values[:, :, :length].clone()) for layer in cache.layers
            ]
            self._kept.setdefault(tuple(row[:length]), layers)


def _gathered(logprobs: torch.Tensor, tokens: torch.Tensor, most: int) -> list[dict[int, Logprob]]:
    """Per position the token itself, with the number of tokens that are as likely or more, and then the most likely."""
    found = []
    for row, token in zip(logprobs, tokens.tolist(), strict=True):
        values, indices = row.topk(most)
        entry = {token: Logprob(float(row[token]), int((row >= row[token]).sum()))}
        for rank, (value, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True), start=1):
            entry[index] = Logprob(value, rank)
        found.append(entry)
    return found
