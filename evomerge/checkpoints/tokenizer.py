"""The tokenizer of a model, and its files by the names under which transformers looks for them."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evomerge.checkpoints.location import find_directory
from evomerge.checkpoints.model_files import CHAT_TEMPLATES, TOKENIZER
from evomerge.errors import InvalidInput
from evomerge.messages import first_line
from evomerge.recipe import ModelRef


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """Names of the tokenizer's files, sorted. Chat templates and processor settings count as its files.

    Templates with names of their own are in a folder, which is then a part of the name.
    """
    names = [path.name for path in directory.iterdir() if path.is_file()]
    templates = [f"{CHAT_TEMPLATES}/{path.name}" for path in (directory / CHAT_TEMPLATES).glob("*.jinja")]
    return tuple(sorted([*(name for name in names if any(fnmatch(name, each) for each in TOKENIZER)), *templates]))


def load_tokenizer(ref: ModelRef, *, allow: Collection[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of the model's weights.

    Raises:
        InvalidInput: there is none, or transformers cannot load it.
    """
    return tokenizer_in(find_directory(ref, allow=allow), ref.name, allow=allow)


def tokenizer_in(directory: Path, source: str, *, allow: Collection[str] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer in a model directory; `source` names the model in errors.

    Raises:
        InvalidInput: there is none, or transformers cannot load it.
    """
    if not tokenizer_files(directory):  # of some model types transformers would make up one of special tokens alone
        raise InvalidInput(f"source {source!r}: {directory} holds no tokenizer; copy the files of its tokenizer there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code="remote_code" in allow
        )
    except Exception as error:  # each tokenizer class reads its files with exceptions of its own
        raise InvalidInput(
            f"source {source!r}: no tokenizer can be loaded from {directory}: {first_line(error)}"
        ) from None
    if tokenizer.get_vocab().keys() <= {str(token) for token in tokenizer.added_tokens_decoder.values()}:
        raise InvalidInput(
            f"source {source!r}: the tokenizer in {directory} has no tokens but added ones; its vocabulary is missing"
        )
    return tokenizer
