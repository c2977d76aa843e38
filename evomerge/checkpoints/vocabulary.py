"""Vocabularies of the tokenizers: the token of each id, from whichever of the files names it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.architecture import build_on_meta, read_settings
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.tokenizer import tokenizer_files, tokenizer_in
from evomerge.errors import InvalidInput
from evomerge.messages import some


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens and ids of a tokenizer.

    Attributes:
        ids: token -> id, added tokens included.
        tokens: id -> token; of two tokens with one id the added one, which is what the id is decoded to.
        special: the special tokens.
        roles: "bos_token" and the like -> token.
        chat_template: one template, or several by name; None where there is none.
    """

    ids: Mapping[str, int]
    tokens: Mapping[int, str]
    special: frozenset[str]
    roles: Mapping[str, str]
    chat_template: Any


def read_vocabulary(source: Source) -> Vocabulary:
    """The vocabulary of a source's tokenizer.

    Raises:
        InvalidInput: there is no tokenizer beside the weights, or transformers cannot load it.
    """
    tokenizer = tokenizer_in(source.directory, source.name, allow=source.allow)
    ids = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    return Vocabulary(
        ids=ids,
        tokens={number: token for token, number in ids.items()}
        | {number: str(token) for number, token in added.items()},
        special=frozenset(tokenizer.all_special_tokens).union(str(each) for each in added.values() if each.special),
        roles={role: str(token) for role, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        chat_template=tokenizer.chat_template,
    )


def token_tensors(source: Source) -> Sequence[str]:
    """Names of the tensors with one row per token: input and output embeddings, and a bias of the output."""
    if source.architecture is None:
        return ()
    model = build_on_meta(source.directory, read_settings(source.directory, source.remote_code), source.remote_code)
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    tensors = {id(tensor) for each in modules if each is not None for tensor in each.parameters(recurse=False)}
    live = model.state_dict(keep_vars=True)
    return [name for name, place in source.live_names.items() if id(live[place]) in tensors]


def embedding_rows(source: Source) -> int:
    """Number of rows of the embeddings; 0 where transformers has no language model for the source."""
    return max((source.header[name][0][0] for name in token_tensors(source)), default=0)


def spare_rows(source: Source) -> int:
    """Number of rows of the embeddings that have no token, as sizes are rounded up with; 0 where no tokenizer loads."""
    rows = embedding_rows(source)
    try:
        return max(rows - len(read_vocabulary(source).ids), 0) if rows else 0
    except InvalidInput:
        return 0


def same_tokenizer(ours: Source, theirs: Source) -> bool:
    """Whether two sources have the same tokenizer by its files alone, so that neither need be loaded."""
    if "remote_code" in ours.allow | theirs.allow:
        return False
    if ours.config.get("model_type") != theirs.config.get("model_type"):  # it may choose the tokenizer's class
        return False
    names = tokenizer_files(ours.directory)
    if not names or names != tokenizer_files(theirs.directory):
        return False
    return all((ours.directory / name).read_bytes() == (theirs.directory / name).read_bytes() for name in names)


def contradictions(ours: Vocabulary, theirs: Vocabulary) -> list[str]:
    """Tokens that have different ids, and ids of different tokens, as text."""
    moved = sorted(
        (t for t, number in ours.ids.items() if theirs.ids.get(t, number) != number), key=ours.ids.__getitem__
    )
    found = [f"{token!r} is {ours.ids[token]} and {theirs.ids[token]}" for token in moved]
    for number in sorted(ours.tokens.keys() & theirs.tokens.keys()):
        pair = ours.tokens[number], theirs.tokens[number]
        if pair[0] != pair[1] and set(pair).isdisjoint(moved):
            found.append(f"{number} is {pair[0]!r} and {pair[1]!r}")
    return found


def differences(ours: Vocabulary, theirs: Vocabulary) -> Iterator[str]:
    """Further differences, which a merge survives with the vocabulary of the base, one sentence each."""
    if tokens := sorted(ours.ids.keys() ^ theirs.ids.keys()):
        yield f"{len(tokens)} tokens stand in one vocabulary only: {some([*map(repr, tokens)])}; merges use the base's"
    if tokens := sorted(ours.special ^ theirs.special):
        yield f"{len(tokens)} tokens are special in one tokenizer only: {some(tokens)}"
    for role in sorted(ours.roles.keys() | theirs.roles.keys()):
        if ours.roles.get(role) != theirs.roles.get(role):
            yield f"{role} is {_said(ours, role)} and {_said(theirs, role)}; merges use the base's"
    if ours.chat_template != theirs.chat_template:
        yield "the chat templates differ; merges use the base's"


def _said(vocabulary: Vocabulary, role: str) -> str:
    token = vocabulary.roles.get(role)
    return "none" if token is None else f"{token!r} ({vocabulary.ids.get(token)})"
