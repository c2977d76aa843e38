"""Location of a model: a local directory, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from evomerge.checkpoints.model_files import TOKENIZER
from evomerge.checkpoints.safetensors_files import INDEX, ONE_FILE
from evomerge.errors import InvalidInput
from evomerge.forms import expanded, is_folder, is_there
from evomerge.licenses import LEGAL
from evomerge.messages import first_line
from evomerge.recipe import ModelRef

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

_TEMPLATE = "*.jinja"
_FILES = (
    "*.json",
    "*.safetensors",
    "*.model",
    "*.tiktoken",
    "*.codes",
    "*.tokenizer",
    "*.txt",
    _TEMPLATE,
    *TOKENIZER,
    "README.md",
    *LEGAL,
)
_PICKLES = "pytorch_model*.bin"  # by another name a pickle is no model: training arguments, an optimiser's state
_OTHER_FORMATS = ("consolidated*",)


def is_hub_id(location: str) -> bool:
    """Whether a location has the form of a hub id ("gpt2", "owner/model") and is not a directory here."""
    return bool(_HUB_ID.fullmatch(location)) and not is_there(Path(location))


def find_directory(ref: ModelRef, *, allow: Collection[str] = (), download: bool = True) -> Path:
    """The directory that holds the model, downloaded into the hub's cache where the location is a hub id.

    Files of a hub snapshot are symbolic links into the cache's blobs, and that is how they are read.
    Raises InvalidInput with the places that were searched.

    Args:
        download: whether files of the hub that the cache lacks are downloaded, and a branch is looked up there.
    """
    directory = expanded(ref.location)
    if is_folder(directory):
        if ref.revision is not None:
            raise InvalidInput(
                f"source {ref.name!r}: {ref.location} is a directory here, and only models of the hub have revisions; "
                f"remove revision {ref.revision!r}, or run where no directory has the name of the hub id"
            )
        return directory.absolute()
    if is_there(directory):
        raise InvalidInput(f"source {ref.name!r}: {ref.location} is a file; give the directory that holds the model")
    if not is_hub_id(ref.location):
        raise InvalidInput(f"source {ref.name!r}: there is no directory {directory.absolute()}")
    if "remote_code" in allow and not _COMMIT.fullmatch(ref.revision or ""):
        # Whoever may push to the repository could otherwise run code here tomorrow.
        raise InvalidInput(
            f"source {ref.name!r}: remote_code is allowed, so the hub model {ref.location} needs a revision that is a "
            f"full commit hash of 40 digits, not {ref.revision!r}"
        )
    return _download(ref, allow, cached=not download)


def _download(ref: ModelRef, allow: Collection[str], *, cached: bool) -> Path:
    directory = _snapshot(ref, [*_FILES, *["*.py"] * ("remote_code" in allow)], cached=cached)
    # Many repositories hold the same weights in both formats, and of the two only safetensors are read.
    if "pickle_weights" in allow and not any((directory / name).exists() for name in (ONE_FILE, INDEX)):
        return _snapshot(ref, [_PICKLES], cached=cached)
    return directory


def _snapshot(ref: ModelRef, wanted: Sequence[str], *, cached: bool) -> Path:
    # Sub-folders hold conversions (onnx/, original/) of the same weights, but for one with chat templates.
    in_folders = [f"*/{each}" for each in wanted if each.startswith("*") and each != _TEMPLATE]
    try:
        return Path(
            snapshot_download(
                ref.location,
                revision=ref.revision,
                allow_patterns=list(wanted),
                ignore_patterns=[*_OTHER_FORMATS, *in_folders],
                local_files_only=cached,
            )
        )
    # LocalEntryNotFoundError and OfflineModeIsEnabled, what an absent network raises, are OSErrors.
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InvalidInput(
            f"source {ref.name!r}: there is no directory {Path(ref.location).absolute()}, and {ref.location!r}, which "
            f"looks like a hub id, could not be had from the hub or its cache at revision {ref.revision or 'main'!r}: "
            f"{first_line(error)}"
        ) from error
