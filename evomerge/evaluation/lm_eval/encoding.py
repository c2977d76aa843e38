"""lm-eval's requests as an engine takes them, and its answers put back where lm-eval's filters look for them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lm_eval.api.instance import Instance

from evomerge.engine.protocol import Pair, Prompt, Requests, Responses, Unwritten, check_pair
from evomerge.errors import InvalidInput
from evomerge.evaluation.lm_eval.model import PreparedLM

Instances = Mapping[str, Mapping[int, Sequence[Instance]]]  # task -> item -> its requests


@dataclass(frozen=True)
class EncodedInstances:
    """Instances as token ids, and the places of their answers.

    Attributes:
        pairs: what log-likelihoods are asked of.
        scored: for each instance that asks for them, the pairs that it is made of.
        prompts: what texts are asked for.
        written: the instance of each prompt.
    """

    pairs: list[Pair] = field(default_factory=list)
    scored: list[tuple[Instance, slice]] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    written: list[Instance] = field(default_factory=list)

    @property
    def requests(self) -> Requests:
        """The requests for an engine."""
        return Requests(self.pairs, self.prompts)

    def answer(self, lm: PreparedLM, responses: Responses) -> None:
        """Give the instances their responses. See `answer_in_parts`."""
        for _ in self.answer_in_parts(lm, responses, []):
            pass

    def answer_in_parts(
        self, lm: PreparedLM, responses: Responses, written: list[str]
    ) -> Generator[tuple[int, int], None, None]:
        """Give the instances their responses, after the texts that the engine has left to lm-eval, part by part.

        Args:
            lm: writes these texts.
            responses: the engine's, to `requests`.
            written: the texts that have been written, in the order of the parts; further ones are added to it.

        Yields:
            The number of parts that have been written, and of all.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        found = responses.loglikelihoods
        for instance, where in self.scored:
            values = found[where]
            rolling = instance.request_type == "loglikelihood_rolling"
            instance.resps = [sum(value for value, _ in values) if rolling else values[0]] * instance.repeats
        parts = list(_parts(responses.texts))
        for number, (batch_size, places) in enumerate(parts, start=1):
            if len(written) < sum(len(each) for _, each in parts[:number]):
                written += lm.write([self.written[at] for at in places], batch_size)
                yield number, len(parts)
        left = dict(zip((at for _, places in parts for at in places), written, strict=True))
        for at, (instance, text) in enumerate(zip(self.written, responses.texts, strict=True)):
            instance.resps = [text if isinstance(text, str) else left[at]] * instance.repeats


def _parts(texts: Sequence[str | Unwritten]) -> Iterator[tuple[int, list[int]]]:
    """Batch size and places of texts that are to be written together: those that may share batches, others alone."""
    left: dict[int, list[int]] = {}
    for at, text in enumerate(texts):
        if isinstance(text, Unwritten):
            left.setdefault(text.batch_size, []).append(at)
    for batch_size, places in left.items():
        yield from ((1, [at]) for at in places) if batch_size == 1 else [(batch_size, places)]


def encode(lm: PreparedLM, instances: Instances) -> EncodedInstances:
    """Instances as lm-eval encodes them.

    Raises:
        InvalidInput: one cannot be run; names its task and item.
    """
    encoded = EncodedInstances()
    for task, by_item in instances.items():
        for item, requests in by_item.items():
            try:
                for instance in requests:
                    _add(lm, encoded, instance)
            except InvalidInput as error:
                raise InvalidInput(f"task {task!r}, item {item}: {error}") from error
    return encoded


def _add(lm: PreparedLM, encoded: EncodedInstances, instance: Instance) -> None:
    if instance.request_type == "generate_until":
        encoded.prompts.append(lm.prompt(instance))
        encoded.written.append(instance)
        return
    pairs = lm.pairs(instance)
    for pair in pairs:
        check_pair(pair, lm.max_length)
    start = len(encoded.pairs)
    encoded.pairs.extend(pairs)
    encoded.scored.append((instance, slice(start, len(encoded.pairs))))
