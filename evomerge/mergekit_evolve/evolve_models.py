"""The models of a configuration as the sources of a search: names, places, and the one that is the base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.baselines.info import BASELINES
from evomerge.errors import InvalidInput
from evomerge.forms import expanded, is_folder
from evomerge.mergekit.model_names import free_name, last_part
from evomerge.mergekit_evolve.evolve_file import METHODS_WITH_BASE, EvolveFile, Keys, Remark
from evomerge.messages import listed

_RESERVED = frozenset({"best", "base", *BASELINES})  # rows of the leaderboard; a source named base comes first
_LONGEST = 60  # of a name, with room for a number behind it


@dataclass(frozen=True, kw_only=True)
class EvolveModels:
    """The models of a search.

    Attributes:
        sources: of the spec, the base first.
        merges_base: whether the base is merged like the others, rather than what task vectors are taken from.
        folder: of the base; None where it is a hub id.
    """

    sources: tuple[dict[str, Any], ...]
    merges_base: bool
    folder: Path | None
    remarks: tuple[Remark, ...]


def read_models(file: EvolveFile, places: Mapping[str, str]) -> EvolveModels:
    """The sources that the models of a configuration are.

    Args:
        places: name -> directory or hub id. A name of the file's own is looked for at the place; another is given to
            the model at the place.

    Raises:
        InvalidInput: a model is nowhere, too few are left, or the tokenizer is not that of the base; names the line.
    """
    base, base_keys = _base(file)
    merged = [model for model in file.models if model != base]
    if not merged:
        raise file.refusal(("genome", "models"), "a search has a base and at least one model beside it")
    order = {base: base_keys} | {model: ("genome", "models", file.models.index(model)) for model in merged}
    sources = tuple(_sources(file, order, places))
    location = Path(sources[0]["location"])
    return EvolveModels(
        sources=sources,
        merges_base=base in file.models and file.method not in METHODS_WITH_BASE,
        folder=location if is_folder(location) else None,
        remarks=tuple(_remarks(file, base, [each["name"] for each in sources])),
    )


def _base(file: EvolveFile) -> tuple[str, Keys]:
    """The model that gives config and tokenizer, and where the file names it."""
    tokenizer = (file.tokenizer_source or "base").removeprefix("model:")
    keys: Keys = ("genome", "tokenizer_source")
    if tokenizer == "union":
        raise file.refusal(
            keys,
            "a union of vocabularies is made beforehand: `evomerge extend-vocabulary` writes a base that has it, to be "
            "named as `base_model` with `tokenizer_source: base`",
        )
    if file.base_model is None and tokenizer != "base":
        if tokenizer not in file.models:
            raise file.refusal(keys, f"{tokenizer} is not among the models ({listed(file.models)})")
        return tokenizer, ("genome", "models", file.models.index(tokenizer))
    if file.base_model is None:
        return file.models[0], ("genome", "models", 0)
    if tokenizer not in ("base", file.base_model):
        raise file.refusal(keys, "config and tokenizer are the base's here; write `tokenizer_source: base`")
    return file.base_model, ("genome", "base_model")


def _sources(file: EvolveFile, order: Mapping[str, Keys], places: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    named = {_model_at(file, order, name, place): (name, place) for name, place in places.items()}
    taken: set[str] = set()
    for model, keys in order.items():
        given, place = named.get(model, (model, model))
        own = last_part(model) if given == model else given
        name = _source_name(own, taken)
        taken.add(name)
        yield {"name": name, **_location(file, _without_base(file, place, next(iter(order)), keys), keys)}


def _without_base(file: EvolveFile, model: str, base: str, keys: Keys) -> str:
    """The place of an adapter alone, where a model is one of the base with an adapter; other models as they are."""
    own, _, adapter = model.partition("+")
    if adapter and own != base:
        raise file.refusal(
            keys,
            f"{model} is a model with an adapter, and here adapters are those of the base, {base}; merge it into its "
            "model first",
        )
    return adapter or model


def _model_at(file: EvolveFile, order: Mapping[str, Keys], name: str, place: str) -> str:
    for model in order:
        if name in (model, last_part(model)) or place in (model, str(_folder(file, model))):
            return model
    raise InvalidInput(
        f"--source {name}={place}: {file.path} names neither {name} nor a model at {place}; "
        f"it has {listed(list(order))}"
    )


def _location(file: EvolveFile, model: str, keys: Keys) -> dict[str, Any]:
    if (folder := _folder(file, model)) is not None:
        return {"location": str(folder)}
    place, _, revision = model.rpartition("@")
    hub_id = place or model
    if len(Path(hub_id).parts) != 2 or hub_id.startswith((".", "~", "/")) or is_folder(Path(hub_id).parent):
        raise file.refusal(
            keys, f"{model} is neither a directory, here or beside the file, nor a hub id; give --source NAME=DIRECTORY"
        )
    return {"location": hub_id, **({"revision": revision} if place else {})}


def _folder(file: EvolveFile, model: str) -> Path | None:
    """The directory of a model, from the working directory or else from that of the file; None for a hub id."""
    for folder in (expanded(model), file.path.parent / model):
        if is_folder(folder):
            return folder.resolve()
    return None


def _source_name(own: str, taken: set[str]) -> str:
    """A name of a source: letters, digits, - and _, that no other has. Only the first may be called base."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", own).strip("-_")[:_LONGEST] or "model"
    reserved = _RESERVED if taken else _RESERVED - {"base"}
    return free_name(plain, taken | reserved)


def _remarks(file: EvolveFile, base: str, names: list[str]) -> Iterator[Remark]:
    line = file.line("genome", "models")
    listed_names = listed(names[1:])
    if base not in file.models and file.method not in METHODS_WITH_BASE:
        text = f"{file.method} merges {listed_names}; {base} gives config and tokenizer. mergekit would fail"
        yield Remark(kind="differs", line=file.line("genome", "base_model"), text=text)
    elif file.base_model is None:
        text = f"{file.method} merges all of them; {names[0]} gives config and tokenizer"
        yield Remark(kind="same", line=line, text=text)
    elif file.method in METHODS_WITH_BASE:
        yield Remark(kind="same", line=file.line("genome", "base_model"), text=f"{names[0]} is the base")
        yield Remark(kind="same", line=line, text=f"experts are {listed_names}")
        if base in file.models:
            text = "the genes of the base, whose task vector is zero, are left out; weights begin at 1/n of the others"
            yield Remark(kind="left out", line=file.line("genome", "models", file.models.index(base)), text=text)
    else:
        yield Remark(kind="same", line=line, text=f"{file.method} merges all of them, {names[0]} first")
    if file.tokenizer_source is not None:
        text = (
            f"the tokenizer is that of {names[0]}, and embeddings are put in its order by token (tokenizer: base); "
            "rows of the base without a token, which mergekit drops, stay"
        )
        yield Remark(kind="same", line=file.line("genome", "tokenizer_source"), text=text)
