"""`evomerge extend-vocabulary`: a base that also has the tokens that experts have added, written as a folder.

With it as the base of a search and `tokenizer: base`, merges have the union of the vocabularies.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.text import Text

from evomerge.artefacts.export_names import CODE
from evomerge.artefacts.streamed_weights import stream_weights
from evomerge.artefacts.tensor_file import PlannedTensor
from evomerge.artefacts.weight_files import as_json, write_text
from evomerge.checkpoints import open_source
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.tokenizer import tokenizer_in
from evomerge.checkpoints.vocabulary import token_tensors
from evomerge.errors import InvalidInput
from evomerge.forms import is_there
from evomerge.licenses import LEGAL
from evomerge.messages import listed, some
from evomerge.recipe import ModelRef
from evomerge.whole_files import folder_in_place

SCHEMA: Final = 1
RECORD: Final = "extended-vocabulary.json"
COPIED: Final = ("generation_config.json", "README.md", *LEGAL)


@dataclass(frozen=True, kw_only=True)
class _NewToken:
    """A token that the base gets.

    Attributes:
        added: as its first tokenizer has it.
        rows: (expert, row) of those that have it.
    """

    added: Any
    rows: tuple[tuple[Source, int], ...]


def extended_base(base: str, experts: Sequence[str], out: Path, *, allow: Collection[str] = ()) -> dict[str, Any]:
    """Write the base with the tokens that experts have added, whole or not at all.

    A new token has the mean of the experts' rows, so that the task vector of its only owner is zero there. Tokens that
    an expert has not added, but was trained with from the start, are left out: a tokenizer cannot learn them later.

    Args:
        base, experts: directories or hub ids.
        out: a folder that does not exist yet.

    Returns:
        A document with `out`, `tokens` (token -> its id and experts), `rows` of the embeddings and `left_out`.

    Raises:
        InvalidInput: a model cannot be read, has embeddings of another width, or nothing is to be added.
    """
    if is_there(out):
        raise InvalidInput(f"{out} exists; give --out a new folder")
    start = open_source(ModelRef("base", base), allow=allow, fingerprinted=False)
    others = [open_source(ModelRef(name, name), allow=allow, like=start, fingerprinted=False) for name in experts]
    names = _token_tensors(start, others)
    tokenizer = tokenizer_in(start.directory, start.name, allow=allow)
    new, left_out = _new_tokens(tokenizer.get_vocab(), others, names[0])
    if not new:
        raise InvalidInput(f"{listed([source.name for source in others])} added no token that {base} lacks")
    for special in (False, True):
        tokenizer.add_tokens([each.added for each in new if each.added.special == special], special_tokens=special)
    ids = {str(each.added): int(tokenizer.convert_tokens_to_ids(str(each.added))) for each in new}
    rows = max(start.header[names[0]][0][0], 1 + max(ids.values()))
    document = {
        "schema": SCHEMA,
        "out": str(out.resolve()),
        "tokens": {
            str(each.added): {"id": ids[str(each.added)], "experts": [source.name for source, _ in each.rows]}
            for each in new
        },
        "rows": rows,
        "left_out": left_out,
    }
    with folder_in_place(out) as folder:
        _write_weights(folder, start, names, rows, {ids[str(each.added)]: each.rows for each in new})
        size = start.header[names[0]][0][0]
        write_text(folder / "config.json", as_json(resized_config(start.config, start.settings, size, rows)))
        tokenizer.save_pretrained(folder)
        copied = [*COPIED, *[CODE] * start.remote_code]
        for path in (path for pattern in copied for path in start.directory.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
        write_text(folder / RECORD, as_json({name: document[name] for name in ("schema", "tokens", "rows")}))
        open_source(ModelRef("extended", str(folder)), allow=allow, fingerprinted=False)
    return document


def extension_text(document: Mapping[str, Any]) -> Text:
    """The document in words."""
    tokens = [f"{token} ({facts['id']})" for token, facts in document["tokens"].items()]
    lines = [f"added {len(tokens)} tokens: {some(tokens, 8)}; {document['rows']} rows"]
    for name, without in document["left_out"].items():
        lines.append(f"{without} tokens of {name} that it has not added itself are left out")
    lines.append(f"written to {document['out']}: name it as the base, and write tokenizer: base")
    return Text("\n".join(lines))


def _token_tensors(base: Source, experts: Sequence[Source]) -> list[str]:
    names = list(token_tensors(base))
    if not names:
        raise InvalidInput(f"{base.directory}: transformers has no language model with embeddings for it")
    for source in experts:
        for name in names:
            stored = source.header.get(source.tied.get(name, name))
            if stored is None or stored[0][1:] != base.header[name][0][1:]:
                raise InvalidInput(f"{source.name} has no {name} of the base's width, so that it gives no rows")
    return names


def _new_tokens(
    known: Mapping[str, int], experts: Sequence[Source], embeddings: str
) -> tuple[list[_NewToken], dict[str, int]]:
    """The tokens, in the order of experts and ids, and how many others each expert has that the base lacks."""
    owners: dict[str, tuple[Any, list[tuple[Source, int]]]] = {}
    left_out: dict[str, int] = {}
    for source in experts:
        tokenizer = tokenizer_in(source.directory, source.name, allow=source.allow)
        rows = source.header[source.tied.get(embeddings, embeddings)][0][0]
        added = {str(token): (row, token) for row, token in sorted(tokenizer.added_tokens_decoder.items())}
        for text, (row, token) in added.items():
            if text not in known and row < rows:
                owners.setdefault(text, (token, []))[1].append((source, row))
        if others := sum(text not in known and text not in owners for text in tokenizer.get_vocab()):
            left_out[source.name] = others
    return [_NewToken(added=token, rows=tuple(rows)) for token, rows in owners.values()], left_out


def _write_weights(
    folder: Path,
    base: Source,
    names: Sequence[str],
    rows: int,
    new: Mapping[int, Sequence[tuple[Source, int]]],
) -> None:
    """Write every stored tensor of the base, those with a row per token under all of their names with new rows."""
    live = {base.live_names[name]: name for name in names}
    assert base.architecture is not None  # it has embeddings
    stored = {file: live[place] for file, place in base.architecture.live_names.items() if place in live}
    header = base.weights.header
    planned = [
        PlannedTensor(file, (rows, *shape[1:]) if file in stored else shape, dtype)
        for file, (shape, dtype) in header.items()
    ]

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for file in header:
            tensor = base.weights.tensors[file]
            yield file, _with_rows(tensor, stored[file], rows, new) if file in stored else tensor

    stream_weights(folder, planned, tensors())


def _with_rows(
    tensor: torch.Tensor, name: str, rows: int, new: Mapping[int, Sequence[tuple[Source, int]]]
) -> torch.Tensor:
    """The tensor of the base with the mean of the experts' rows at new places."""
    longer = tensor.new_zeros((rows, *tensor.shape[1:]))
    longer[: len(tensor)] = tensor
    for place, owners in new.items():
        given = [source.tensors[source.tied.get(name, name)][row].float() for source, row in owners]
        longer[place] = torch.stack(given).mean(dim=0).to(tensor.dtype)
    return longer


def resized_config(config: Mapping[str, Any], settings: Mapping[str, Any], old: int, rows: int) -> dict[str, Any]:
    """The config with the new size of the vocabulary, in nested ones too, and where it was left out as a default."""
    resized = {
        key: resized_config(value, settings.get(key) or {}, old, rows) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key != "transformers_weights"
    }
    if resized.get("vocab_size", settings.get("vocab_size")) == old:
        resized["vocab_size"] = rows
    return resized
