"""lm-eval's requests as an engine takes them, and its answers put back where lm-eval's filters look for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """Give the instances their responses.

        Args:
            lm: writes the texts that the engine has left to lm-eval.
            responses: the engine's, to `requests`.

        Raises:
            MergeError: the model's logits are not numbers.
        """
        found = responses.loglikelihoods
        for instance, where in self.scored:
            values = found[where]
            rolling = instance.request_type == "loglikelihood_rolling"
            instance.resps = [sum(value for value, _ in values) if rolling else values[0]] * instance.repeats
        for instance, text in zip(self.written, self._texts(lm, responses.texts), strict=True):
            instance.resps = [text] * instance.repeats

    def _texts(self, lm: PreparedLM, texts: Sequence[str | Unwritten]) -> list[str]:
        """The texts, with lm-eval's own where the engine has written none."""
        left: dict[int, list[int]] = {}
        for at, text in enumerate(texts):
            if isinstance(text, Unwritten):
                left.setdefault(text.batch_size, []).append(at)
        written: dict[int, str] = {}
        for batch_size, places in left.items():
            found = lm.write([self.written[at] for at in places], batch_size)
            written.update(zip(places, found, strict=True))
        return [text if isinstance(text, str) else written[at] for at, text in enumerate(texts)]


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
