"""Greedy decoding of prepared prompts: the texts that lm-eval's `generate_until` gives, without what it repeats.

Prompts are encoded once. A prefix that many of them share is computed once per run, rows of like length go together, a
finished row leaves its batch, and keys and values are written in place into room that was made for all of them. What
a stop string cuts off is lm-eval's decision; here it only ends a row early, and never before that cut is certain.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from evomerge.engine.interim import WrittenTexts
from evomerge.engine.protocol import Prompt, not_a_number, run_through
from evomerge.engine.tree import KeysValues
from evomerge.prefix_tree import PASS_COST, PrefixTree, TreePass, arrange, schedule, stems_behind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RETIRE = 8  # one in this many rows has to be finished before the others are moved together

# Generation settings that greedy decoding does not read, or that are the same for us and for `generate`.
_HARMLESS = {"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p"}
_HARMLESS |= {"use_cache", "max_length", "transformers_version", "_from_model_config"}
_NEUTRAL = {"repetition_penalty": 1.0, "length_penalty": 1.0, "num_beams": 1}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Decoding functions that turn generated ids into the text that lm-eval compares.

    Attributes:
        decode: the text of some tokens.
        decode_all: the same with the names of special tokens, which lm-eval also looks for stop strings in.
        special: the special tokens, see `special_tokens`.
        lookahead: characters after a stop string that may still change the text before it.
    """

    decode: Callable[[list[int]], str]
    decode_all: Callable[[list[int]], str]
    special: frozenset[int]
    lookahead: int = 0

    def stops_at(self, token: int, stops: Sequence[str]) -> bool:
        """Whether a token is a special one whose name holds a stop string, at which lm-eval ends a text."""
        return token in self.special and any(stop in self.decode_all([token]) for stop in stops)


@dataclass(frozen=True, kw_only=True)
class _GreedyPass:
    """Rows that are written together, after one stem; or a stem itself.

    Attributes:
        stem, keeps: see `prefix_tree.TreePass`.
        prompts: which prompt each row is; empty for a stem.
        tokens: [rows, width], left-padded.
        mask: [rows, stem + width], 1 where there is a token, None where there is no padding.
        positions: [rows, width], the place of each token in its prompt.
    """

    stem: int | None
    keeps: int | None
    prompts: list[int]
    tokens: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor


class GreedyTexts:
    """Prompts, prepared once; `run` writes their texts with whatever weights the model holds then.

    Args:
        prompts: what is to be continued.
        reader: what their texts are.
        ends: tokens after which nothing more is written.
        budget: tokens in a batch, written ones included.
        device: where the model is.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        reader: Reader,
        ends: Collection[int],
        *,
        budget: int,
        device: torch.device,
    ) -> None:
        self._prompts = prompts
        self._reader = reader
        self._ends = frozenset(ends)
        self._device = device
        self._stops = {prompt.stops: _Stops(prompt.stops, reader) for prompt in prompts}
        self._batches = self._prepare(budget)
        self._last_use = {each.stem: at for at, each in enumerate(self._batches)}
        self.tokens = 0  # tokens that the last run forwarded, padding among them

    @property
    def passes(self) -> int:
        """Passes of a run."""
        return len(self._batches)

    def run(self, model: PreTrainedModel, reset: Callable[[], None]) -> list[str | None]:
        """The text of every prompt, cut at its stop strings.

        A stop string in the name of a special token, such as "a" in "<pad>", ends a text without being cut off: lm-eval
        drops that token. None where a stop string is found across the end of such a name.

        Args:
            reset: called before each batch, see `Loglikelihoods.run`.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        return run_through(self.by_passes(model, reset, self.nothing_written()))

    def nothing_written(self) -> WrittenTexts:
        """The texts before the first pass."""
        return WrittenTexts(tokens=[[] for _ in self._prompts])

    def by_passes(
        self, model: PreTrainedModel, reset: Callable[[], None], written: WrittenTexts
    ) -> Generator[None, None, list[str | None]]:
        """`run`, pass by pass, behind those that have been finished; what each writes is added to `written`."""
        stems: dict[int, KeysValues] = {}
        finished = written.passes
        again = stems_behind(self._batches, finished)
        for at, batch in enumerate(self._batches):
            if at < finished and at not in again:
                continue
            reset()
            self.tokens = 0
            stem = [] if batch.stem is None else stems[batch.stem]
            with torch.no_grad():
                if batch.keeps is None:
                    self._write(model, batch, stem, written.tokens)
                else:
                    stems[batch.keeps] = self._read_stem(model, batch, stem)
            if batch.stem is not None and self._last_use[batch.stem] == at:
                del stems[batch.stem]
            if at >= finished:
                written.passes += 1
                written.forwarded += self.tokens
                yield
        self.tokens = written.forwarded
        texts = zip(written.tokens, self._prompts, strict=True)
        return [text_of(tokens, prompt.stops, self._reader, self._ends) for tokens, prompt in texts]

    def _prepare(self, budget: int) -> list[_GreedyPass]:
        # A number of its own at the end makes every prompt distinct, and keeps its last token, whose logits are needed,
        # out of the stems.
        sequences = sorted((*prompt.tokens[:-1], -1 - index) for index, prompt in enumerate(self._prompts))
        growth = max((prompt.limit for prompt in self._prompts), default=0)
        cost = PASS_COST * (1 + growth)  # a batch of its own is a pass of its own for every token that is written
        tree = arrange(sequences, 0, pass_cost=cost, join=False)
        return [self._batch(tree, step) for step in schedule(tree, budget, growth=growth, pass_cost=cost)]

    def _batch(self, tree: PrefixTree, step: TreePass) -> _GreedyPass:
        rows = [tree.rows[index] for index in step.rows]
        prompts = [-1 - row.tokens[-1] for row in rows] if step.keeps is None else []
        tokens = [row.tokens for row in rows]
        if prompts:
            tokens = [
                [*row[:-1], self._prompts[prompt].tokens[-1]] for row, prompt in zip(tokens, prompts, strict=True)
            ]
        width = max(map(len, tokens))
        missing = [width - len(row) for row in tokens]
        behind = rows[0].start
        mask = [[1] * behind + [0] * gap + [1] * (width - gap) for gap in missing] if any(missing) else None
        padded = [[0] * gap + row for gap, row in zip(missing, tokens, strict=True)]
        positions = [[0] * gap + [*range(behind, behind + width - gap)] for gap in missing]
        return _GreedyPass(
            stem=step.stem,
            keeps=step.keeps,
            prompts=prompts,
            tokens=torch.tensor(padded, device=self._device),
            mask=None if mask is None else torch.tensor(mask, device=self._device),
            positions=torch.tensor(positions, device=self._device),
        )

    def _read_stem(self, model: PreTrainedModel, batch: _GreedyPass, stem: KeysValues) -> KeysValues:
        cache = _cache(stem, 1, batch.tokens.shape[1])
        self._forward(model, batch.tokens, mask=None, positions=batch.positions, cache=cache)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _write(self, model: PreTrainedModel, batch: _GreedyPass, stem: KeysValues, written: list[list[int]]) -> None:
        """Write the texts of a batch, token by token."""
        rows = batch.prompts
        longest = max(self._prompts[prompt].limit for prompt in rows)
        cache = _cache(stem, len(rows), batch.tokens.shape[1] + longest - 1)
        tokens, mask, positions = batch.tokens, batch.mask, batch.positions
        done: set[int] = set()
        while True:
            logits = self._forward(model, tokens, mask=mask, positions=positions, cache=cache)
            likeliest = logits.float().argmax(-1)
            for prompt, token in zip(rows, likeliest.tolist(), strict=True):
                if prompt not in done:
                    written[prompt].append(token)
                    if self._is_done(prompt, written[prompt]):
                        done.add(prompt)
            left = [row for row, prompt in enumerate(rows) if prompt not in done]
            if not left:
                return
            tokens, positions = likeliest[:, None], positions[:, -1:] + 1
            mask = None if mask is None else torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            if (len(rows) - len(left)) * _RETIRE >= len(rows):
                kept = torch.tensor(left, device=self._device)
                rows = [rows[row] for row in left]
                tokens, positions = tokens[kept], positions[kept]
                mask = None if mask is None else mask[kept]
                for layer in cache.layers:
                    layer.keep(kept)

    def _is_done(self, prompt: int, written: list[int]) -> bool:
        settings = self._prompts[prompt]
        if written[-1] in self._ends or len(written) == settings.limit:
            return True
        return self._stops[settings.stops].reached(written)

    def _forward(
        self,
        model: PreTrainedModel,
        tokens: torch.Tensor,
        *,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Cache,
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] after the last token of every row."""
        self.tokens += tokens.numel()
        only_last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        logits: torch.Tensor = model(
            tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **only_last
        ).logits[:, -1]
        if bool(logits.isnan().any()):
            raise not_a_number()
        return logits


def is_plain_greedy(model: PreTrainedModel) -> bool:
    """Whether nothing in the model's generation settings changes what greedy decoding gives."""
    if getattr(model, "generation_config", None) is None:
        return False
    settings = model.generation_config.to_diff_dict()
    return not {name for name, value in settings.items() if value and value != _NEUTRAL.get(name)} - _HARMLESS


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """The tokens after which the model's own `generate` writes nothing more."""
    ends = model.generation_config.eos_token_id
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


def text_of(written: list[int], stops: Sequence[str], reader: Reader, ends: Collection[int]) -> str | None:
    """The text of written tokens, cut at its stop strings; None where only lm-eval knows it, see `GreedyTexts.run`.

    Tokens behind a special token whose name holds a stop string are dropped: lm-eval, with one text in a batch, writes
    none there.
    """
    odd = [at for at, token in enumerate(written) if token in reader.special and token not in ends]
    end = next((at for at in odd if reader.stops_at(written[at], stops)), None)
    if end is not None:
        written, odd = written[: end + 1], [at for at in odd if at < end]
    if odd:
        last = odd[-1] + 1
        behind = max(map(len, stops), default=0)
        named = reader.decode_all(written[:last]) + reader.decode(written[last:])[:behind]
        if any(stop in named for stop in stops):
            return None
    return cut(reader.decode(written), stops)


def cut_may_move(stops: Sequence[str], reader: Reader) -> bool:
    """Whether tokens behind a stop string may change the text before it."""
    return bool(reader.lookahead) or _overlap(stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the first occurrence of each stop string, one after the other, as lm-eval does.

    The source is `postprocess_generated_text` of lm-eval 0.4.
    """
    for stop in stops:
        text = text.split(stop)[0]
    return text


class _Stops:
    """Notices when a growing text has reached a stop string for good.

    Args:
        stops: none empty.
        reader: what the text is.
    """

    def __init__(self, stops: Sequence[str], reader: Reader) -> None:
        self._stops = stops
        self._reader = reader
        self._decode = reader.decode
        self._lasts = {stop[-1] for stop in stops}
        longest = max(map(len, stops), default=0)
        self._lookahead = max(reader.lookahead, 2 * longest if _overlap(stops) else 0)
        self._can_end: dict[int, bool] = {}  # token -> whether a stop string may end in it

    def reached(self, written: list[int]) -> bool:
        """Whether nothing that may follow can change what is kept of the text."""
        if self._reader.stops_at(written[-1], self._stops):
            return True
        if not self._lookahead and not self._may_end(written[-1]):
            return False
        text = self._decode(written)
        ends = [text.index(stop) + len(stop) for stop in self._stops if stop in text]
        return bool(ends) and len(text) >= min(ends) + self._lookahead

    def _may_end(self, token: int) -> bool:
        """Whether a stop string may end in this token. Missing one only costs time: every text is cut in the end."""
        if token not in self._can_end:
            text = self._decode([token])
            self._can_end[token] = not text or "\ufffd" in text or not self._lasts.isdisjoint(text)
        return self._can_end[token]


def _overlap(stops: Sequence[str]) -> bool:
    """Whether one stop string may begin before another one ends and end after it: then what follows can move the cut.

    Cutting is done for one stop string after the other: with "b?" before "ab", "cab" keeps "c" but "cab?" keeps "ca".
    """
    for one in stops:
        for other in set(stops) - {one}:
            for shift in range(1 - len(other), len(one)):
                start, stop = max(0, shift), min(len(one), shift + len(other))
                later = shift != 0 and shift + len(other) > len(one)
                if later and one[start:stop] == other[start - shift : stop - shift]:
                    return True
    return False


def _cache(stem: KeysValues, rows: int, room: int) -> Cache:
    """An empty cache with room for some tokens, behind a stem that all rows share."""
    if not stem:
        return Cache(layer_class_to_replicate=partial(_RoomyLayer, room))
    layers = [_RoomyLayer(room + keys.shape[-2]) for keys, _ in stem]
    for layer, (keys, values) in zip(layers, stem, strict=True):
        layer.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
    return Cache(layers=layers)


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [rows, heads, tokens, size] that grow in place, where transformers copies them for every token.

    Args:
        room: how many tokens it can hold.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._held = tuple(
                new.new_empty(*new.shape[:2], self._room, new.shape[3]) for new in (key_states, value_states)
            )
        stop = start + key_states.shape[-2]
        for held, new in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, start:stop] = new
        self._show(stop)
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these indices."""
        self._held = tuple(held[rows] for held in self._held)
        self._show(self.keys.shape[-2])

    def _show(self, length: int) -> None:
        self.keys, self.values = (held[:, :, :length] for held in self._held)
