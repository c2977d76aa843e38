"""The engine protocol: token ids in, log-likelihoods and texts out, with whatever weights the engine holds.

An engine has one model, whose weights change from candidate to candidate while its requests stay the same. So requests
are prepared once and run for every candidate: arranging them costs as much as scoring a small model, and the trial
passes that decide how they may share forward passes have to see the weights of the base, not those of a candidate.

`TransformersEngine` runs a live model of transformers, `ScriptedEngine` answers without one. An engine with a scheduler
of its own has little to prepare: that of vLLM (`vllm_engine/`) returns the requests in its own form, asks for the
log-probability of every prompt token in `run`, and sends the live model's weights in `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from evomerge.errors import InvalidInput, MergeError
from evomerge.prefix_tree import Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from evomerge.engine.interim import ScoredTokens

Pair = tuple[list[int], list[int]]  # token ids of a context and of the continuation that is scored
Loglikelihood = tuple[float, bool]  # of a continuation in nats, and whether greedy decoding would write it
ScoredSuffix = tuple[int, list[int]]  # a request, and the tokens to be scored at the end of its input
Prepared = TypeVar("Prepared")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A request for a text: what greedy decoding writes behind some tokens.

    Attributes:
        tokens: the prompt, at least one token.
        limit: how many tokens may be written.
        stops: strings of which each ends the text where it first occurs.
        plain: whether greedy decoding up to the end token gives the text, and no stop string is empty.
    """

    tokens: Tokens
    limit: int
    stops: tuple[str, ...]
    plain: bool = True


@dataclass(frozen=True)
class Unwritten:
    """A text that the engine leaves to the evaluator, whose own generation may differ from greedy decoding there.

    Attributes:
        batch_size: how many of these texts may be written together without changing each other.
    """

    batch_size: int = 1


@dataclass(frozen=True)
class Requests:
    """Requests to a model as token ids. The answers come in the same order."""

    pairs: Sequence[Pair] = ()
    prompts: Sequence[Prompt] = ()

    def lengths(self, max_length: int) -> Lengths:
        """The distinct lengths, for a model that holds `max_length` tokens."""
        scored = (min(len(context) + len(rest) - 1, max_length) for context, rest in self.pairs)
        written = ((len(prompt.tokens), len(prompt.tokens) + prompt.limit) for prompt in self.prompts)
        return Lengths(frozenset(scored), frozenset(written))


@dataclass(frozen=True)
class Lengths:
    """Distinct lengths in tokens: of scored inputs, and of prompts alone and with all that may be written."""

    scored: frozenset[int]
    written: frozenset[tuple[int, int]]

    @property
    def read(self) -> frozenset[int]:
        """Lengths of the inputs that a model is first given: scored ones and prompts."""
        return self.scored | {prompt for prompt, _ in self.written}

    @property
    def shortest(self) -> int:
        return min(self.read, default=1)

    @property
    def longest(self) -> int:
        return max([*self.scored, *(text for _, text in self.written)], default=1)


@dataclass(frozen=True)
class Responses:
    """Answers to prepared requests, in the order in which they were asked.

    Attributes:
        loglikelihoods: one for each pair.
        texts: one for each prompt, cut at its stop strings.
        tokens: tokens that were forwarded, padding among them.
    """

    loglikelihoods: Sequence[Loglikelihood]
    texts: Sequence[str | Unwritten]
    tokens: int


class Engine(Protocol[Prepared]):
    """Runs requests on one model. Used by one thread.

    The answer to a request is a function of the loaded weights and the request alone: not of the requests beside it,
    of what was loaded or run before, or of a global random generator. Preparing runs the model but changes no answer.

    Example, with weights A and B and token ids 3 and 5::

        engine.load(weights_of_base)
        prepared = engine.prepare(Requests(pairs=[([3], [5])]), lengths)
        engine.load(weights_a)
        engine.run(prepared).loglikelihoods  # [(-1.25, False)]: log p(5 | 3) under A; A would write another token
        engine.load(weights_b)
        engine.run(prepared).loglikelihoods  # [(-0.5, True)], the same request under B
    """

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take new weights: from here on all answers are theirs, and nothing that earlier ones left behind is used.

        Args:
            weights: tensor name -> tensor, of the shape that the model has. Tensors left out stay as they are: an
                empty mapping announces weights that the caller has written into the engine's own tensors.

        Raises:
            InvalidInput: the model has no such tensor, or one of another shape.
        """
        ...

    def prepare(self, requests: Requests, lengths: Lengths) -> Prepared:
        """Arrange requests so that `run` can answer them with any weights. The base's should be loaded meanwhile.

        Args:
            requests: what will be asked.
            lengths: of all requests that these belong to, such as those of a whole part of the items: with the same
                lengths a request has the same answer in whatever block it is prepared.

        Raises:
            InvalidInput: a request cannot be run, or the model cannot run requests of these lengths.
            MergeError: the loaded weights compute no numbers.
        """
        ...

    def run(self, prepared: Prepared) -> Responses:
        """Answer prepared requests with the weights of the last `load`.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Interim:
    """A moment of a run between two of its passes.

    Attributes:
        passes: how many have been finished.
        of: how many the run has.
        answers: reads what the finished ones gave, as bytes from which `ContinuableEngine.run_by_passes` continues.
            To be called before the next pass.
    """

    passes: int
    of: int
    answers: Callable[[], bytes]


@runtime_checkable
class ContinuableEngine(Engine[Prepared], Protocol[Prepared]):
    """An engine that runs requests pass by pass, and continues a run behind the passes that another one finished."""

    def run_by_passes(self, prepared: Prepared, answers: bytes | None = None) -> Generator[Interim, None, Responses]:
        """`run`, with a moment after each pass. The responses are those of `run` to the last bit.

        Args:
            answers: of an earlier run of the same requests with the same weights, on the same kind of device; bytes
                of anything else are not used.

        Raises:
            MergeError: see `run`.
        """
        ...


@runtime_checkable
class BoundedEngine(Engine[Prepared], Protocol[Prepared]):
    """An engine that may hold fewer tokens than the model, and can tell before any score whether requests fit.

    An evaluator asks it for all of them when the engine is opened: a held-out item that does not fit would otherwise be
    found by the verdict, after the whole search.
    """

    def check_requests(self, requests: Requests) -> None:
        """Check that requests could be prepared, without running anything.

        Raises:
            InvalidInput: one of them does not fit.
        """
        ...


class Loglikelihoods(Protocol):
    """Requests for log-likelihoods, prepared once; `run` scores them with whatever weights the model holds then.

    Attributes:
        tokens: tokens that `run` forwards, padding among them.
        distinct: tokens of the prefix tree of all requests: the fewest that any way of computing them can forward.
    """

    tokens: int
    distinct: int

    @property
    def passes(self) -> Sequence[int]:
        """The number of tokens that each pass scores, in the order of the passes."""
        ...

    def by_passes(
        self, model: PreTrainedModel, reset: Callable[[], None], scored: ScoredTokens
    ) -> Generator[None, None, list[Loglikelihood]]:
        """`run`, pass by pass, behind those that have been finished; what each scores is added to `scored`."""
        ...

    def run(self, model: PreTrainedModel, reset: Callable[[], None]) -> list[Loglikelihood]:
        """The log-likelihood of each request's continuation, and whether greedy decoding gives that continuation.

        Args:
            reset: called before each forward pass; puts back what the model keeps between passes.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        ...


def run_through(passes: Generator[object, None, _Result]) -> _Result:
    """Run all passes, and return what the last one returns."""
    while True:
        try:
            next(passes)
        except StopIteration as end:
            result: _Result = end.value
            return result


def distinct_inputs(pairs: Sequence[Pair], max_length: int) -> dict[Tokens, list[ScoredSuffix]]:
    """Input sequence -> the requests that it answers: continuations that differ in their last token share one.

    Raises:
        InvalidInput: see `check_pair`.
    """
    inputs: dict[Tokens, list[ScoredSuffix]] = {}
    for request, (context, continuation) in enumerate(pairs):
        check_pair((context, continuation), max_length)
        row = tuple([*context, *continuation][-(max_length + 1) :][:-1])
        inputs.setdefault(row, []).append((request, continuation))
    return inputs


def check_pair(pair: Pair, max_length: int) -> None:
    """Check a request before it is run.

    Raises:
        InvalidInput: it has nothing to score or no context, or more to score than `max_length` tokens.
    """
    context, continuation = pair
    if not context or not continuation or len(continuation) > max_length:
        raise InvalidInput(
            f"a request has {len(context)} tokens of context and {len(continuation)} to score; both must be there, "
            f"and at most {max_length} can be scored: shorten the item, or raise max_length of the evaluator"
        )


def not_a_number() -> MergeError:
    """The error for a candidate that computes nothing."""
    return MergeError("the logits of the candidate are not numbers (NaN): its weights overflow or are not finite")
