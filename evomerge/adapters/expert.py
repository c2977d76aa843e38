"""An expert of a merge: a whole model, or an adapter of the base."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from evomerge.adapters.adapted_tensors import AdaptedTensors
from evomerge.adapters.adapter_settings import SETTINGS_FILE, AdapterSettings, read_settings
from evomerge.adapters.stored_changes import stored_changes
from evomerge.catalogue import build_catalogue
from evomerge.checkpoints.digests import fingerprint
from evomerge.checkpoints.json_files import read_object
from evomerge.checkpoints.location import find_directory, is_hub_id
from evomerge.checkpoints.safetensors_files import INDEX, ONE_FILE
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.tokenizer import tokenizer_files
from evomerge.checkpoints.weights import Weights, safetensors_weights
from evomerge.errors import InvalidInput
from evomerge.fitting import check_policies, open_fitted
from evomerge.recipe import ModelRef

WEIGHTS_FILE = "adapter_model.safetensors"
_WHOLE_MODELS = (ONE_FILE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter as PEFT writes it."""
    return (directory / SETTINGS_FILE).exists()


def adapter_names(experts: Iterable[Source]) -> tuple[str, ...]:
    """Names of those that are adapters of the base."""
    return tuple(expert.name for expert in experts if expert.adapted is not None)


def open_expert(
    ref: ModelRef,
    *,
    base: Source,
    allow: Collection[str] = (),
    trust_fingerprint: bool = False,
    fingerprinted: bool = True,
) -> Source:
    """Opens a model that is merged with the base: see `open_fitted`; or an adapter of the base.

    An adapter is a source with the tensors of the base, some of them changed: each is computed when it is read. Its
    fingerprint depends on that of the base. It has the base's tokenizer where it brings none. No policy changes it: its
    products belong to the very rows of the base that it was trained on.

    Raises:
        InvalidInput: as `open_fitted`; an adapter is not of the base, or of a kind that no merge of weights expresses.
    """
    directory = find_directory(ref, allow=allow)
    if not is_adapter(directory):
        return open_fitted(
            ref, base=base, allow=allow, trust_fingerprint=trust_fingerprint, fingerprinted=fingerprinted
        )
    check_policies(ref)
    settings = read_settings(read_object(directory / SETTINGS_FILE), directory / SETTINGS_FILE)
    weights = _weights(ref, directory)
    changes = stored_changes(weights.tensors, settings, base, directory / WEIGHTS_FILE)
    given = ref.fingerprint if trust_fingerprint else None
    known = given if given or not (fingerprinted or ref.fingerprint) else _fingerprint(ref, settings, weights, base)
    tensors = AdaptedTensors(base.tensors, changes.changes)
    header = {
        name: (shape, dtype if name not in changes.changes or dtype == "float64" else "float32")
        for name, (shape, dtype) in base.header.items()
    }
    return replace(
        base,
        ref=replace(ref, fingerprint=known),
        directory=directory,
        hub_id=ref.location if is_hub_id(ref.location) else None,
        tokenizer_files=tokenizer_files(directory),
        catalogue=build_catalogue(header, base.tied, language=base.language),
        header=header,
        tensors=tensors,
        pickled=False,
        adapted=base,
        notes=(*_other_base(settings, base), *changes.notes),
    )


def _weights(ref: ModelRef, directory: Path) -> Weights:
    """The tensors of the adapter's file, under its names.

    Raises:
        InvalidInput: there is none, or a whole model beside it.
    """
    if beside := next((name for name in _WHOLE_MODELS if (directory / name).exists()), None):
        raise InvalidInput(
            f"source {ref.name!r}: {directory} holds an adapter and a whole model ({beside}); give a directory that "
            "holds one of them"
        )
    if not (directory / WEIGHTS_FILE).is_file():
        pickled = (directory / "adapter_model.bin").exists()
        raise InvalidInput(
            f"source {ref.name!r}: {directory} has no {WEIGHTS_FILE}"
            + (
                "; adapter_model.bin is a pickle, which is not read: save the adapter again with PEFT"
                if pickled
                else ""
            )
        )
    return safetensors_weights(directory, WEIGHTS_FILE)


def _fingerprint(ref: ModelRef, settings: AdapterSettings, weights: Weights, base: Source) -> str:
    found = fingerprint({"adapter": settings.identity(), "base": base.ref.fingerprint}, weights.digests())
    if ref.fingerprint not in (None, found):
        raise InvalidInput(
            f"source {ref.name!r}: {ref.location} or its base has changed: the fingerprint is {found}, expected "
            f"{ref.fingerprint}"
        )
    return found


def _other_base(settings: AdapterSettings, base: Source) -> Iterator[str]:
    """A sentence where the adapter names another base than it is used with, by the last part of its name."""
    if settings.base is None:
        return
    names = {PurePath(place).name for place in (base.ref.location, str(base.directory))}
    if PurePath(settings.base).name not in names:
        yield f"the adapter says that it was trained on {settings.base}; here it changes {base.ref.location}"
