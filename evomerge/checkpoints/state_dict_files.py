"""State dicts of any model as safetensors: a file, or a folder with one file or the index of several."""

from __future__ import annotations

from pathlib import Path

from evomerge.checkpoints.location import find_directory
from evomerge.checkpoints.quantized_tensors import check_tensors
from evomerge.checkpoints.safetensors_files import INDEX, INDEX_ENDING, ONE_FILE
from evomerge.checkpoints.weights import Weights, safetensors_weights
from evomerge.errors import InvalidInput
from evomerge.messages import some
from evomerge.recipe import ModelRef

ENDING = ".safetensors"


def find_state_dict(location: str) -> Path:
    """The file or folder of a state dict, downloaded into the hub's cache where the location is a hub id.

    Raises:
        InvalidInput: there is none.
    """
    return Path(location) if Path(location).exists() else find_directory(ModelRef(location, location))


def open_state_dict(path: Path) -> Weights:
    """The tensors of a state dict, each read when it is asked for.

    In a folder they are those of transformers' names, else of the only index or of the only safetensors file there.

    Raises:
        InvalidInput: there is none, there are several, or one is damaged or quantised.
    """
    weights = _weights(path)
    check_tensors(str(path), weights.header)
    return weights


def _weights(path: Path) -> Weights:
    if path.is_file():
        if not path.name.endswith((ENDING, INDEX_ENDING)):
            raise InvalidInput(f"{path} is no safetensors file; convert it with safetensors.torch.save_file")
        return safetensors_weights(path.parent, path.name)
    names = sorted(each.name for each in path.iterdir() if each.is_file()) if path.is_dir() else []
    if ONE_FILE in names or INDEX in names:
        return safetensors_weights(path)
    found = [name for name in names if name.endswith(INDEX_ENDING)] or [name for name in names if name.endswith(ENDING)]
    if len(found) != 1:
        raise InvalidInput(
            f"{path} has {f'several state dicts, {some(found)}; give the file' if found else 'no safetensors file'}"
        )
    return safetensors_weights(path, found[0])
