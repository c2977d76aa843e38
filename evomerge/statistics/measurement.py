"""The measurement of one source on its calibration texts, text by text: a file that merges of the source take.

What has been measured once is found again by its content: source, texts, kind, settings and device. A measurement that
is cut short continues from its sums, in float64 and in the order of the texts, to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import torch
from pydantic import Field
from torch import Tensor

from evomerge.catalogue import TensorCatalogue
from evomerge.checkpoints.recipe_files import read_tensors, store_tensors, write_tensors
from evomerge.conversion.live_tensors import Leaf, leaves
from evomerge.documents import Frozen
from evomerge.errors import InvalidInput, unknown_name
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.recipe import ModelRef
from evomerge.statistics.fisher import FisherSums, floating_parameters
from evomerge.statistics.grams import GramSums, linear_layers
from evomerge.whole_files import write_whole

CHECKPOINTS = 8  # of one measurement, at most: one of a large model takes longer to write than a few texts to read
_FORM = 2  # raised whenever the same measurement would give other numbers, or its files change


class MeasurementSettings(Frozen):
    """Settings of a measurement.

    Attributes:
        max_length: longer texts lose their beginning.
        constant: Grams have the constant 1 as the last input of layers with a bias.
    """

    max_length: Annotated[int, Field(gt=1)] = 2048
    constant: bool = False


class TextSums(Protocol):
    """Sums over texts."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums in float64, by name."""

    def add_text(self, text: CalibrationText, what: str) -> None:
        """Run the model on a text."""

    def means(self) -> dict[str, Tensor]:
        """The statistic, by the names of the catalogue. The sums are used up."""

    def counts(self) -> Any:
        """The numbers that the sums are divided by, as plain data."""

    def restore(self, tensors: Mapping[str, Tensor], counts: Any) -> None:
        """Continue from stored sums."""


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A live model that holds a source, with its tensors by the names of the catalogue."""

    model: torch.nn.Module
    live: Mapping[str, Tensor]
    catalogue: TensorCatalogue

    @property
    def device(self) -> torch.device:
        return next(iter(self.live.values())).device

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Name of a parameter -> name in the catalogue, of those that are merged and have one form in both.

        Parameters that several modules share are left out.
        """
        names = {id(self.live[entry.name]): entry.name for entry in self.catalogue.mergeable if not entry.aliases}
        return {name: names[id(tensor)] for name, tensor in tensors.items() if id(tensor) in names}

    @property
    def merged(self) -> dict[str, Leaf]:
        """Name of a floating-point parameter -> that parameter with the merged tensors that have numbers in it."""
        found = {id(leaf.tensor): leaf for leaf in leaves(self.live, [each.name for each in self.catalogue.mergeable])}
        parameters = floating_parameters(self.model).items()
        return {name: found[id(parameter)] for name, parameter in parameters if id(parameter) in found}


@dataclass(frozen=True, kw_only=True)
class StatisticKind:
    """A kind of statistics that is measured.

    Attributes:
        token_mask: the positions of a text that count, see `CalibrationText.counted`.
        gradients: whether its texts are read forward and backward.
        draws: whether it depends on the seed.
    """

    name: str
    token_mask: str
    gradients: bool
    draws: bool

    def sums(self, measured: MeasuredModel, settings: MeasurementSettings, seed: int) -> TextSums:
        return _FisherOfTexts(measured, seed) if self.gradients else _GramsOfTexts(measured, settings)

    def usable(self, texts: Sequence[CalibrationText], source: str, max_length: int) -> list[CalibrationText]:
        """The texts of a source, cut to the longest allowed length.

        Raises:
            InvalidInput: there are none, or nothing counts in one of them.
        """
        cut = [text.cut(max_length) for text in texts]
        empty = [number for number, text in enumerate(cut) if not text.counted(self.token_mask)]
        if empty or not cut:
            reason = f"nothing counts in its calibration text {empty[0]}" if empty else "it has no calibration texts"
            raise InvalidInput(
                f"{self.name} of source {source!r} cannot be measured: {reason}; give texts of two tokens or more"
            )
        return cut


KINDS: Final[dict[str, StatisticKind]] = {
    kind.name: kind
    for kind in (
        StatisticKind(name="fisher", token_mask="answer", gradients=True, draws=True),
        StatisticKind(name="grams", token_mask="all", gradients=False, draws=False),
    )
}


def find_kind(name: str) -> StatisticKind:
    """The kind of that name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in KINDS:
        raise unknown_name("kind of statistics", name, KINDS)
    return KINDS[name]


def texts_digest(texts: Sequence[CalibrationText]) -> str:
    """Digest of texts, in their order."""
    return hashlib.sha256(repr([(text.tokens, text.answer) for text in texts]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class MeasurementInputs:
    """All that a measurement depends on, and the folders that it writes to.

    Attributes:
        base: the source that all tensors come from which are not merged.
        source: the model that is measured, which `measured` holds.
        files: folder of the files of recipes, where the result is stored.
        folder: of the index of finished measurements and of the sums of an unfinished one: a cache.
    """

    kind: StatisticKind
    base: ModelRef
    source: ModelRef
    measured: MeasuredModel
    texts: Sequence[CalibrationText]
    seed: int
    files: Path
    folder: Path
    settings: MeasurementSettings = field(default_factory=MeasurementSettings)

    @property
    def key(self) -> str:
        """Digest of all that decides the numbers."""
        dtype = str(next(iter(self.measured.live.values())).dtype)
        content = [
            _FORM, self.kind.name, self.base.fingerprint, self.source.fingerprint, dtype, self.measured.device.type,
            texts_digest(self.texts), self.settings.model_dump(mode="json"), self.seed if self.kind.draws else None,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class MeasurementStep:
    """Progress of a measurement: texts that have been read, of how many."""

    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class MeasuredSource:
    """The end of a measurement.

    Attributes:
        digest: of the file with the statistics.
        forward_tokens, gradient_tokens: read without and with gradients.
        seconds: duration, including the time before an interruption up to the last checkpoint.
    """

    digest: str
    forward_tokens: int
    gradient_tokens: int
    seconds: float


def measure(given: MeasurementInputs) -> Generator[MeasurementStep, None, MeasuredSource]:
    """Measure a source, or find what was measured before.

    Whenever a step is yielded, the live model is as it was. Steps before an interruption are yielded as one.

    Yields:
        A step after each text; none where the result was found.

    Raises:
        InvalidInput: texts in which nothing counts, or numbers that are not finite.
    """
    texts = given.kind.usable(given.texts, given.source.name, given.settings.max_length)
    index, sums_file = given.folder / f"{given.key}.json", given.folder / f"{given.key}.safetensors"
    known = _known(index, given.files)
    if known is not None:
        return known
    sums = given.kind.sums(given.measured, given.settings, given.seed)
    done, spent = _restored(sums_file, sums, given.measured.device)
    began = time.perf_counter() - spent
    if done:
        yield MeasurementStep(step=done, steps=len(texts))
    every = -(-len(texts) // CHECKPOINTS)
    for number in range(done, len(texts)):
        sums.add_text(texts[number], f"calibration text {number} of source {given.source.name!r}")
        if (number + 1) % every == 0 and number + 1 < len(texts):
            _store(sums_file, sums, number + 1, time.perf_counter() - began)
        yield MeasurementStep(step=number + 1, steps=len(texts))
    described = {"statistics": given.kind.name, "source": str(given.source.fingerprint)}
    digest = store_tensors(given.files, _finite(sums.means(), given), described)
    tokens = sum(len(text.tokens) for text in texts)
    found = MeasuredSource(
        digest=digest,
        forward_tokens=0 if given.kind.gradients else tokens,
        gradient_tokens=tokens if given.kind.gradients else 0,
        seconds=time.perf_counter() - began,
    )
    write_whole(index, json.dumps(vars(found)).encode())
    sums_file.unlink(missing_ok=True)
    return found


def _known(index: Path, files: Path) -> MeasuredSource | None:
    """The result of an earlier measurement whose file is still there: the index is only a cache."""
    found = read_index(index)
    return found if found is not None and (files / f"{found.digest}.safetensors").is_file() else None


def read_index(path: Path) -> MeasuredSource | None:
    """The result that an index names; None where it cannot be read."""
    try:
        return MeasuredSource(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _store(path: Path, sums: TextSums, done: int, seconds: float) -> None:
    """Replace the former sums in one step: there are always whole ones."""
    state = {"done": str(done), "seconds": str(seconds), "counts": json.dumps(sums.counts())}
    write_tensors(path, sums.tensors, state)


def _restored(path: Path, sums: TextSums, device: torch.device) -> tuple[int, float]:
    """Texts in the stored sums, from which `sums` continues, and the seconds that they took; 0 without any."""
    try:
        tensors, state = read_tensors(path)
        done, seconds, counts = int(state["done"]), float(state["seconds"]), json.loads(state["counts"])
    except (OSError, InvalidInput, ValueError, KeyError):  # it is only a cache
        return 0, 0.0
    sums.restore({name: tensor.to(device, copy=True) for name, tensor in tensors.items()}, counts)
    return done, seconds


def _finite(tensors: dict[str, Tensor], given: MeasurementInputs) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(
                f"{given.kind.name} of source {given.source.name!r} for tensor {name!r} is not finite; "
                "search in a wider dtype"
            )
    return tensors


class _GramsOfTexts:
    """Grams of a causal language model. See `TextSums`."""

    def __init__(self, measured: MeasuredModel, settings: MeasurementSettings) -> None:
        weights = {name: layer.get_parameter("weight") for name, layer in linear_layers(measured.model).items()}
        self._names = measured.named(weights)
        self._sums = GramSums(measured.model, constant=settings.constant)
        self._device = measured.device

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._sums.tensors

    def add_text(self, text: CalibrationText, what: str) -> None:
        self._sums.add(_inputs_of(torch.tensor([text.tokens], device=self._device)), None, what)

    def means(self) -> dict[str, Tensor]:
        return {self._names[name]: gram for name, gram in self._sums.means().items() if name in self._names}

    def counts(self) -> Any:
        return self._sums.counts

    def restore(self, tensors: Mapping[str, Tensor], counts: Any) -> None:
        self._sums.tensors.update(tensors)
        self._sums.counts.update({name: (rows, dtype) for name, (rows, dtype) in counts.items()})


class _FisherOfTexts:
    """Fishers of a causal language model, sampled where a token of the answer is predicted. See `TextSums`."""

    def __init__(self, measured: MeasuredModel, seed: int) -> None:
        self._measured = measured
        self._sums = FisherSums(measured.model, inputs_of=_inputs_of)
        self._device = measured.device
        self._seed = seed

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._sums.tensors

    def add_text(self, text: CalibrationText, what: str) -> None:
        tokens = torch.tensor(text.tokens, device=self._device)
        mask = torch.zeros(len(text.tokens), dtype=torch.bool)
        mask[list(text.counted("answer"))] = True
        self._sums.add_sampled(tokens, mask, seed=self._seed, what=what)

    def means(self) -> dict[str, Tensor]:
        means, found = self._sums.means(), dict[str, Tensor]()
        for parameter, leaf in self._measured.merged.items():
            for name, form in leaf.forms.items():
                fisher = form(means[parameter])
                found[name] = found[name] + fisher if name in found else fisher
        return found

    def counts(self) -> Any:
        return self._sums.count

    def restore(self, tensors: Mapping[str, Tensor], counts: Any) -> None:
        self._sums.tensors.update(tensors)
        self._sums.count = counts


def _inputs_of(tokens: Tensor) -> dict[str, Any]:
    return {"input_ids": tokens, "use_cache": False}
