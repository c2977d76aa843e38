"""The promises of an inference engine, as tests. A test module subclasses this and says how to build an engine."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.engine.protocol import Engine, Lengths, Prompt, Requests, Responses, Unwritten
from evomerge.errors import InvalidInput, MergeError

__all__ = ["EngineContract"]

Weights = Mapping[str, torch.Tensor]


class EngineContract:
    """Subclasses give `build` and the three sets of weights; `tokens` are at least eight that the model knows."""

    tokens: tuple[int, ...] = (4, 5, 6, 7, 8, 9, 10, 11)
    max_length = 64

    def build(self) -> Engine[Any]:
        """A new engine that holds `max_length` tokens, with any weights."""
        raise NotImplementedError

    def weights(self) -> tuple[Weights, Weights]:
        """Two sets of weights that answer differently. The first is taken for the base."""
        raise NotImplementedError

    def broken(self) -> Weights:
        """Weights with which the model computes NaN."""
        raise NotImplementedError

    @pytest.fixture
    def engine(self) -> Engine[Any]:
        engine = self.build()
        engine.load(self.weights()[0])
        return engine

    def requests(self) -> Requests:
        """Pairs and prompts that share prefixes, repeat, and have several lengths."""
        a, b, c, d, e, f, g, h = self.tokens[:8]
        pairs = [([a, b, c], [d]), ([a, b, c], [e]), ([a, b], [f, g, h]), ([h], [a]), ([a, b, c], [d])]
        prompts = [Prompt(tokens=tokens, limit=6, stops=()) for tokens in ((a, b, c), (a, b, d), (g,), (a, b, c))]
        return Requests(pairs, prompts)

    def test_every_request_is_answered_in_the_order_in_which_it_was_asked(self, engine: Engine[Any]) -> None:
        requests = self.requests()
        responses = self._answers(engine, requests)
        backwards = self._answers(engine, Requests(requests.pairs[::-1], requests.prompts[::-1]))
        assert len(responses.loglikelihoods) == len(requests.pairs)
        assert all(math.isfinite(value) and value <= 0 for value, _ in responses.loglikelihoods)
        assert all(greedy in (True, False) for _, greedy in responses.loglikelihoods)
        assert _values(backwards) == pytest.approx(_values(responses)[::-1], abs=1e-4)
        assert list(backwards.texts) == list(responses.texts)[::-1]
        assert responses.tokens > 0

    def test_a_request_has_the_answer_that_it_has_alone(self, engine: Engine[Any]) -> None:
        requests = self.requests()
        together = self._answers(engine, requests)
        for number, pair in enumerate(requests.pairs):
            (alone,) = _values(self._answers(engine, Requests([pair]), self._lengths(requests)))
            assert alone == pytest.approx(_values(together)[number], abs=1e-4)
        for number, prompt in enumerate(requests.prompts):
            text = self._answers(engine, Requests([], [prompt]), self._lengths(requests)).texts[0]
            assert text == together.texts[number]

    def test_no_more_than_the_whole_probability_goes_to_the_continuations_of_a_context(
        self, engine: Engine[Any]
    ) -> None:
        answers = self._answers(engine, Requests([([self.tokens[0]], [token]) for token in self.tokens]))
        assert sum(map(math.exp, _values(answers))) <= 1 + 1e-4
        assert sum(greedy for _, greedy in answers.loglikelihoods) <= 1

    def test_a_text_ends_before_its_first_stop_string_or_is_left_to_the_evaluator(self, engine: Engine[Any]) -> None:
        whole = self._answers(engine, self.requests()).texts
        written = [text for text in whole if isinstance(text, str) and text]
        stops = (written[0][-1],) if written else ("a",)
        prompts = [Prompt(tokens=each.tokens, limit=each.limit, stops=stops) for each in self.requests().prompts]
        for text, longer in zip(self._answers(engine, Requests([], prompts)).texts, whole, strict=True):
            if isinstance(text, str) and isinstance(longer, str):
                assert text == longer.split(stops[0])[0]

    def test_a_prompt_that_greedy_decoding_does_not_answer_is_left_to_the_evaluator(self, engine: Engine[Any]) -> None:
        prompt = Prompt(tokens=self.tokens[:2], limit=4, stops=(), plain=False)
        (text,) = self._answers(engine, Requests([], [prompt])).texts
        assert isinstance(text, Unwritten)
        assert text.batch_size >= 1

    def test_n17_what_is_prepared_once_answers_for_a_then_b_then_a(self, engine: Engine[Any]) -> None:
        first, second = self.weights()
        requests = self.requests()
        prepared = engine.prepare(requests, self._lengths(requests))
        once = engine.run(prepared)
        engine.load(second)
        between = engine.run(prepared)
        engine.load(first)
        assert _plain(engine.run(prepared)) == _plain(engine.run(prepared)) == _plain(once)
        assert _values(between) != _values(once)

    def test_requests_prepared_under_other_weights_have_the_answers_of_a_new_engine(self, engine: Engine[Any]) -> None:
        requests = self.requests()
        prepared = engine.prepare(requests, self._lengths(requests))
        engine.load(self.weights()[1])
        fresh = self.build()
        fresh.load(self.weights()[1])
        theirs = self._answers(fresh, requests)
        assert _values(engine.run(prepared)) == pytest.approx(_values(theirs), abs=1e-4)
        assert list(engine.run(prepared).texts) == list(theirs.texts)

    def test_weights_that_compute_no_numbers_are_an_error_and_leave_nothing_behind(self, engine: Engine[Any]) -> None:
        requests = self.requests()
        prepared = engine.prepare(requests, self._lengths(requests))
        once = engine.run(prepared)
        engine.load(self.broken())
        with pytest.raises(MergeError, match="not numbers"):
            engine.run(prepared)
        engine.load(self.weights()[0])
        assert _plain(engine.run(prepared)) == _plain(once)

    def test_a_request_with_nothing_to_score_or_too_much_is_refused_when_it_is_prepared(
        self, engine: Engine[Any]
    ) -> None:
        lengths = self._lengths(self.requests())
        for pair in (([], [self.tokens[0]]), ([self.tokens[0]], []), ([self.tokens[0]], [5] * (self.max_length + 1))):
            with pytest.raises(InvalidInput, match="tokens of context"):
                engine.prepare(Requests([pair]), lengths)

    def test_nothing_asked_is_nothing_answered(self, engine: Engine[Any]) -> None:
        responses = self._answers(engine, Requests())
        assert (list(responses.loglikelihoods), list(responses.texts)) == ([], [])

    def test_n13_an_engine_leaves_the_global_generators_alone(self, engine: Engine[Any]) -> None:
        before = _generators()
        self._answers(engine, self.requests())
        assert _generators() == before

    def _lengths(self, requests: Requests) -> Lengths:
        return requests.lengths(self.max_length)

    def _answers(self, engine: Engine[Any], requests: Requests, lengths: Lengths | None = None) -> Responses:
        return engine.run(engine.prepare(requests, lengths or self._lengths(requests)))


def _values(responses: Responses) -> list[float]:
    return [value for value, _ in responses.loglikelihoods]


def _plain(responses: Responses) -> tuple[list[Any], list[Any], int]:
    return list(responses.loglikelihoods), list(responses.texts), responses.tokens


def _generators() -> tuple[Any, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
