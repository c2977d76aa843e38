"""The tokenizer of a model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers import AutoTokenizer

from evomerge.checkpoints.location import find_directory
from evomerge.checkpoints.wording import one_line
from evomerge.errors import InvalidInput
from evomerge.recipe import ModelRef


def load_tokenizer(ref: ModelRef, *, allow: Collection[str] = ()) -> Any:
    """The tokenizer that lies beside the model's weights.

    Raises:
        InvalidInput: there is none, or transformers cannot load it.
    """
    directory = find_directory(ref, allow=allow)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code="remote_code" in allow)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"source {ref.name!r}: no tokenizer can be loaded from {directory}: {one_line(error)}"
        ) from None
