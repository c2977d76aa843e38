"""The sanity probe of a live model: a neutral text is read, eight openings are continued, eight questions answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from evomerge.checkpoints.chat_date import on_one_date
from evomerge.engine.greedy import Reader, end_tokens
from evomerge.engine.live_state import LiveState
from evomerge.engine.probe import made_up_tokens, vocabulary_of
from evomerge.engine.protocol import Pair, Prompt, Requests, not_a_number
from evomerge.engine.special_tokens import special_tokens
from evomerge.engine.transformers_engine import TransformersEngine
from evomerge.sanity.neutral_texts import OPENINGS, QUESTIONS, TEXT
from evomerge.sanity.sanity_figures import SanityFigures
from evomerge.sanity.written_faults import loops, refuses, strays

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WRITTEN: Final = 48  # tokens of a continuation and of an answer, at most
WINDOW: Final = 256  # tokens of the neutral text that are read at once, at most
_TOGETHER: Final = 4096  # tokens of prompts and texts in a forward pass, where a prompt alone is not longer
READABLE: Final = 0.9  # share of the neutral text that a tokenizer has to be able to write
_MADE_UP: Final = 8  # tokens of an opening where the tokenizer cannot write ours


class SanityProbe:
    """Probes the weights that a live model holds. Requests are encoded once.

    Args:
        model: with the weights of the base, by which it is found out how requests may share forward passes.
        tokenizer: of the base, with its chat template: what an export carries.

    Raises:
        InvalidInput: the model cannot run such requests.
        MergeError: the loaded weights compute no numbers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary_of(model)
        held = max(4, _positions(model) - 1)
        room = min(held, WINDOW)
        self._limit = max(1, min(WRITTEN, room // 2))
        self._readable = _readable(tokenizer)
        self._ends = end_tokens(model) | {each for each in [tokenizer.eos_token_id] if each is not None}
        self._special = special_tokens(tokenizer) - self._ends
        self._has_template = self._readable and _asked(tokenizer, QUESTIONS[0]) is not None
        self._continued = [self._prompt(tokens, held) for tokens in self._openings(model)]
        self._answered = [self._prompt(self._question(text), held) for text in QUESTIONS] if self._readable else []
        pairs = self._windows(room) if self._readable else []
        self._scored = sum(len(rest) for _, rest in pairs)
        requests = Requests(pairs=pairs, prompts=[*self._continued, *self._answered])
        reader = Reader(decode=_numbers, decode_all=_numbers, special=frozenset())
        lengths = requests.lengths(held)
        together = min(len(requests.prompts), max(1, _TOGETHER // lengths.longest))
        self._engine = TransformersEngine(model, reader, max_length=held, batch_size=together, state=LiveState(model))
        self._engine.load({})
        self._prepared = self._engine.prepare(requests, lengths)

    def run(self) -> SanityFigures:
        """Figures of the weights that the model holds now.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        self._engine.load({})
        responses = self._engine.run(self._prepared)
        nats = -math.fsum(value for value, _ in responses.loglikelihoods)
        if not math.isfinite(nats):
            raise not_a_number()
        written = [
            _tokens(text) if isinstance(text, str) else self._greedy(prompt)
            for text, prompt in zip(responses.texts, [*self._continued, *self._answered], strict=True)
        ]
        continued, answers = written[: len(self._continued)], written[len(self._continued) :]
        found = [self._strays(tokens) for tokens in answers]
        return SanityFigures(
            nats=nats / self._scored if self._scored else None,
            vocabulary=self._vocabulary,
            continuations=len(continued),
            loops=sum(map(loops, continued)),
            answers=len(answers),
            strays=sum(map(bool, found)) if answers else None,
            endless=sum(self._ends.isdisjoint(tokens) for tokens in answers) if self._has_template else None,
            refusals=sum(refuses(self._text(tokens)) for tokens in answers) if answers else None,
            stray=next((marker for markers in found for marker in markers), ""),
            tokens=responses.tokens,
        )

    def _openings(self, model: PreTrainedModel) -> list[list[int]]:
        if self._readable:
            return [self._encoded(text) for text in OPENINGS]
        return [made_up_tokens(model, _MADE_UP, seed) for seed in range(1, len(OPENINGS) + 1)]

    def _question(self, text: str) -> list[int]:
        asked = _asked(self._tokenizer, text)
        if asked is None:
            return self._encoded(f"Question: {text}\nAnswer:")
        return self._encoded(asked, special=False)

    def _encoded(self, text: str, *, special: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _prompt(self, tokens: Sequence[int], held: int) -> Prompt:
        """A prompt as long as the model can hold: cut, a chat template would lose its start token and its header."""
        return Prompt(tokens=tuple(tokens[-(held - self._limit) :]), limit=self._limit, stops=())

    def _windows(self, room: int) -> list[Pair]:
        """The neutral text in windows of which each token but the first is scored."""
        tokens = self._encoded(TEXT)
        windows = [tokens[start : start + room] for start in range(0, len(tokens), room)]
        return [(window[:1], window[1:]) for window in windows if len(window) > 1]

    def _greedy(self, prompt: Prompt) -> list[int]:
        """Greedy decoding of a model whose texts the engine leaves to others: without a cache, text by text."""
        import torch

        from evomerge.engine.flat import forward

        tokens: list[int] = list(prompt.tokens)
        model = self._engine.model
        while len(tokens) - len(prompt.tokens) < prompt.limit and self._ends.isdisjoint(tokens[len(prompt.tokens) :]):
            self._engine.load({})
            rows = torch.tensor([tokens], device=model.device)
            last = torch.tensor([len(tokens) - 1], device=model.device)
            tokens.append(int(forward(model, rows, last).reshape(-1).argmax()))
        self._engine.load({})
        return tokens[len(prompt.tokens) :]

    def _strays(self, tokens: Sequence[int]) -> list[str]:
        """Markers and special tokens of an answer before its end."""
        end = next((at for at, token in enumerate(tokens) if token in self._ends), len(tokens))
        text = self._text(tokens[:end], special=True)
        names = {str(self._tokenizer.decode([token])) for token in tokens[:end] if token in self._special}
        return list(dict.fromkeys([*strays(text), *sorted(names)]))

    def _text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))


def _positions(model: PreTrainedModel) -> int:
    """Tokens that the model can hold; a window's where it does not say."""
    given = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(given) if isinstance(given, int) and given > 1 else WINDOW


def _readable(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer can write the neutral text: few unknown tokens, and little of it is lost."""
    tokens = list(tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"])
    known = sum(token != tokenizer.unk_token_id for token in tokens)
    again = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return known >= READABLE * max(1, len(tokens)) and len(again) >= READABLE * len(TEXT)


def _asked(tokenizer: PreTrainedTokenizerBase, question: str) -> str | None:
    """A question in the tokenizer's chat template; None where it has none, or it cannot be filled in."""
    if not tokenizer.chat_template:
        return None
    message: list[dict[str, Any]] = [{"role": "user", "content": question}]
    with suppress(Exception):  # templates are programs of others, which raise what they like
        template = on_one_date(tokenizer.get_chat_template())
        options = {"tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(message, chat_template=template, **options))
    return None


def _numbers(tokens: Sequence[int]) -> str:
    """Token ids as the text of an answer, so that the engine gives back tokens and not words."""
    return " ".join(map(str, tokens))


def _tokens(text: str) -> list[int]:
    return [int(number) for number in text.split()]
