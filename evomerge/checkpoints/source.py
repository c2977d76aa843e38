"""A source: a model that goes into a merge, opened for reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evomerge.catalogue import TensorCatalogue, build_catalogue
from evomerge.checkpoints.architecture import Architecture, describe
from evomerge.checkpoints.digests import fingerprint
from evomerge.checkpoints.json_files import read_object, read_object_if_there
from evomerge.checkpoints.location import find_directory, is_hub_id
from evomerge.checkpoints.quantized_tensors import check_settings, check_tensors
from evomerge.checkpoints.tokenizer import tokenizer_files
from evomerge.checkpoints.weights import Weights, open_weights
from evomerge.conversion import LivePlace
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened model. None of its weights is in memory until a tensor is read.

    A tensor is named as the base's checkpoint names it. A tied tensor has one entry, and tensors that the model class
    does not load (old buffers) have none.

    Attributes:
        ref: as the user gave it, with the fingerprint filled in.
        directory: folder of the files.
        hub_id: the hub id that it was downloaded from, None for a local directory.
        config: content of config.json.
        generation_config: content of generation_config.json, None without one.
        tokenizer_files: names of the tokenizer's files in the directory.
        catalogue: the tensors, with layer and part.
        header: name -> (shape, dtype name).
        tensors: the tensors, read lazily; they may share memory with the mapped files: nobody writes to them.
        tied: further name -> name, for tied tensors.
        unused: stored tensors that the model class does not load.
        language: names of the language model's tensors, where the model class tells.
        weights: all tensors as they are stored, under the names of the files.
        stored_names: name -> name in the files.
        live_names: name -> name in the live model, where the live model keeps the tensor as it is stored.
        places: name -> place in the live model, where that keeps the tensor in another form.
        architecture: the checkpoint as transformers loads it, None where it has no causal language model for it.
        allow: permissions beyond reading tensors.
        remote_code: whether code of the model's or its tokenizer's own is there and may run.
        pickled: whether the weights are pickles.
        adapted: the base that this is an adapter of; None for a whole model. `weights` are then the base's.
        notes: sentences on what of the files a merge leaves out.
    """

    ref: ModelRef
    directory: Path
    hub_id: str | None
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    tokenizer_files: tuple[str, ...]
    catalogue: TensorCatalogue
    header: Mapping[str, tuple[tuple[int, ...], str]]
    tensors: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]
    unused: tuple[str, ...]
    language: frozenset[str]
    weights: Weights
    stored_names: Mapping[str, str]
    live_names: Mapping[str, str]
    places: Mapping[str, LivePlace]
    architecture: Architecture | None
    allow: frozenset[str]
    remote_code: bool
    pickled: bool
    adapted: Source | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def is_tied(self) -> bool:
        """Whether one tensor of the model has several names, as with shared input and output embeddings."""
        return bool(self.tied)

    def divided(self, patterns: Iterable[tuple[str, str]]) -> TensorCatalogue:
        """The catalogue with parts by other patterns: (part, regular expression) pairs, tried in order."""
        return build_catalogue(self.header, self.tied, patterns, self.language)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The config with its defaults written out, where transformers knows the model."""
        return self.architecture.settings if self.architecture else self.config


def open_source(
    ref: ModelRef,
    *,
    allow: Collection[str] = (),
    like: Source | None = None,
    trust_fingerprint: bool = False,
    fingerprinted: bool = True,
) -> Source:
    """Opens a model directory, or downloads it from the hub and opens it.

    Args:
        ref: the model. Where it has a fingerprint already, the files must still have it.
        allow: what the user allowed beyond reading tensors: "pickle_weights", "remote_code".
        like: the base. Tensors that are the same tensor of the live model are then named as the base names them, though
            the files name them otherwise (with or without the prefix of the base model, either name of a tied tensor).
        trust_fingerprint: take the fingerprint of `ref` as it is instead of reading all weights. For workers, on files
            that the controller has just read.
        fingerprinted: whether a model without a fingerprint gets one, for which all of its weights are read.

    Raises InvalidInput where the model is missing, damaged, or of a kind that is not allowed.
    """
    directory = find_directory(ref, allow=allow)
    config = _read_config(ref, directory, allow)
    weights = open_weights(directory, allow=allow, file=_weights_file(directory, config))
    check_tensors(f"source {ref.name!r}: {directory}", weights.header)
    may_run = "remote_code" in allow
    architecture = describe(directory, config, weights.header, remote_code=may_run and "auto_map" in config)
    stored_names, tied, live_names, places = _name_tensors(ref, weights, architecture, like)
    header = {name: weights.header[stored] for name, stored in stored_names.items()}
    spoken = architecture.language if architecture else frozenset()
    language = frozenset(name for name, live in live_names.items() if live in spoken) | frozenset(
        name for name, place in places.items() if spoken.issuperset(place.live_names)
    )
    given = ref.fingerprint if trust_fingerprint else None
    known = given if given or not (fingerprinted or ref.fingerprint) else _fingerprint(ref, config, weights)
    return Source(
        ref=replace(ref, fingerprint=known),
        directory=directory,
        hub_id=ref.location if is_hub_id(ref.location) else None,
        config=config,
        generation_config=read_object_if_there(directory / "generation_config.json"),
        tokenizer_files=tokenizer_files(directory),
        catalogue=build_catalogue(header, tied, language=language),
        header=header,
        tensors=RenamedTensors(weights.tensors, stored_names),
        tied=tied,
        unused=architecture.unused if architecture else (),
        language=language,
        weights=weights,
        stored_names=stored_names,
        live_names=live_names,
        places=places,
        architecture=architecture,
        allow=frozenset(allow),
        remote_code=may_run and ("auto_map" in config or _tokenizer_has_code(directory)),
        pickled=weights.pickled,
    )


class RenamedTensors(Mapping[str, torch.Tensor]):
    """Tensors under other names than they are stored under."""

    def __init__(self, stored: Mapping[str, torch.Tensor], stored_names: Mapping[str, str]) -> None:
        self._stored = stored
        self._stored_names = stored_names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._stored[self._stored_names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored_names)

    def __len__(self) -> int:
        return len(self._stored_names)


def _read_config(ref: ModelRef, directory: Path, allow: Collection[str]) -> dict[str, Any]:
    if (directory / "adapter_config.json").exists():
        raise InvalidInput(
            f"source {ref.name!r}: {directory} is an adapter, which cannot be a base; give the model that it was "
            "trained on as base, and the adapter as a further source"
        )
    config = read_object(directory / "config.json")
    check_settings(f"source {ref.name!r}: {directory}", config)
    if "auto_map" in config and "remote_code" not in allow:
        raise InvalidInput(
            f"source {ref.name!r}: config.json in {directory} names code of its own (auto_map), which would run here; "
            "remove auto_map if transformers knows the model, or add remote_code to `allow` if you trust its author"
        )
    return config


def _tokenizer_has_code(directory: Path) -> bool:
    return "auto_map" in (read_object_if_there(directory / "tokenizer_config.json") or {})


def _weights_file(directory: Path, config: Mapping[str, Any]) -> str | None:
    file = config.get("transformers_weights")
    if not isinstance(file, str | None):
        raise InvalidInput(f"config.json in {directory} gives {file!r} as transformers_weights, which is no file name")
    return file


def _fingerprint(ref: ModelRef, config: Mapping[str, Any], weights: Weights) -> str:
    found = fingerprint(config, weights.digests())
    if ref.fingerprint not in (None, found):
        raise InvalidInput(
            f"source {ref.name!r}: {ref.location} has changed: its fingerprint is {found}, expected {ref.fingerprint}"
        )
    return found


def _name_tensors(
    ref: ModelRef, weights: Weights, architecture: Architecture | None, like: Source | None
) -> tuple[dict[str, str], dict[str, str], dict[str, str], dict[str, LivePlace]]:
    """Name -> stored name, further name of a tied tensor -> name, name -> live name, and name -> place."""
    if architecture is None:
        return {name: name for name in sorted(weights.header)}, {}, {}, {}
    names_of_like = {live: name for name, live in like.live_names.items()} if like else {}
    ties, whole = _ties(weights, architecture, like)
    further_names = _grouped(ties)
    stored_names = {name: name for name in architecture.unplaced}
    tied: dict[str, str] = {}
    live_names: dict[str, str] = {}
    for live, stored in _grouped(whole).items():
        _check_equal(ref, weights.digest, stored)
        # Of several stored names the one that the live model has first: `embed_tokens` rather than `lm_head`.
        name = names_of_like.get(live, live if live in stored else stored[0])
        stored_names[name] = name if name in stored else stored[0]
        live_names[name] = live
        if live in further_names:
            tied |= dict.fromkeys({*stored, live, *further_names[live]} - {name}, name)
    places_of_like = {place: name for name, place in like.places.items()} if like else {}
    places = {places_of_like.get(place, stored): place for stored, place in architecture.places.items()}
    stored_names |= {places_of_like.get(place, stored): stored for stored, place in architecture.places.items()}
    return dict(sorted(stored_names.items())), tied, live_names, places


def _ties(weights: Weights, architecture: Architecture, like: Source | None) -> tuple[dict[str, str], dict[str, str]]:
    """Further live name -> live name, and stored name -> live name.

    Where the base ties tensors that this model keeps apart, but with equal values, they are tied here as well: trainers
    that save both names of a tied tensor are many.
    """
    ties, places = dict(architecture.ties), dict(architecture.live_names)
    stored_names = {live: name for name, live in places.items()}
    for further, first in (like.architecture.ties if like and like.architecture else {}).items():
        pair = [stored_names.get(name) for name in (further, first)]
        if further not in ties and None not in pair and len({weights.digest(str(name)) for name in pair}) == 1:
            ties[further] = first
            places[str(pair[0])] = first
    return ties, places


def _grouped(leaders: Mapping[str, str]) -> dict[str, list[str]]:
    """Leader -> its names, sorted."""
    groups = defaultdict(list)
    for name, leader in sorted(leaders.items()):
        groups[leader].append(name)
    return groups


def _check_equal(ref: ModelRef, digest: Callable[[str], str], stored: list[str]) -> None:
    if len(stored) > 1 and len({digest(name) for name in stored}) > 1:
        raise InvalidInput(
            f"source {ref.name!r}: {' and '.join(stored)} are one tied tensor by config.json, but the files hold "
            "different values for them; set tie_word_embeddings to false if they are two tensors, or store one of them"
        )
