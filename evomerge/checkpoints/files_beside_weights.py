"""Digests of the files beside the weights of a model on which its scores depend, too.

They decide the tokens of a prompt, the words around a question, and how a text is written: tokenizer, chat templates,
generation settings, and the code of a model that transformers does not know. The fingerprint of a source covers its
config and tensors only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from evomerge.checkpoints.digests import BOOKKEEPING
from evomerge.checkpoints.json_files import read_object
from evomerge.checkpoints.source import Source
from evomerge.checkpoints.tokenizer import tokenizer_files

GENERATION: Final = "generation_config.json"
CONFIG: Final = "config.json"
SETTINGS: Final = (CONFIG, GENERATION, "tokenizer_config.json")  # transformers writes its version into them
LENGTH: Final = 32  # hexadecimal digits of a digest, so that a message can show two of them


def files_beside_weights(source: Source) -> dict[str, str]:
    """Name -> digest. Files rather than loaded objects: another release of a library is a warning, not a change.

    The code of a hub model is left out: it is pinned by the revision, and downloaded when it is first needed.

    Raises:
        InvalidInput: a file of settings is no JSON object.
    """
    names = [*source.tokenizer_files, *([GENERATION] if source.generation_config is not None else [])]
    paths = {name: source.directory / name for name in names}
    if source.remote_code and source.hub_id is None:
        found = source.directory.rglob("*.py")
        paths |= {path.relative_to(source.directory).as_posix(): path for path in found}
    return {name: _digest(path) for name, path in sorted(paths.items())}


def alike_beside_weights(ours: Path, theirs: Path) -> bool:
    """Whether two model directories differ in their weights alone: the config and all that is read beside it agree.

    Raises:
        InvalidInput: a file of settings is no JSON object.
    """
    first, second = (
        {name: _digest(directory / name) for name in _read_beside(directory)} for directory in (ours, theirs)
    )
    return CONFIG in first and first == second


def _read_beside(directory: Path) -> list[str]:
    code = [path.relative_to(directory).as_posix() for path in directory.rglob("*.py")]
    names = [CONFIG, GENERATION, *tokenizer_files(directory), *code]
    return sorted(name for name in names if (directory / name).is_file())


def _digest(path: Path) -> str:
    if path.name in SETTINGS:
        kept = {key: value for key, value in read_object(path).items() if key not in BOOKKEEPING}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:LENGTH]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:LENGTH]
