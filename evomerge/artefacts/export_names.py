"""Names of the files and folders that exports consist of, by which an earlier export is told from other files."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Final

from evomerge.adapters.adapter_settings import SETTINGS_FILE
from evomerge.adapters.expert import WEIGHTS_FILE
from evomerge.artefacts.exported_files import RECIPE_FILES
from evomerge.checkpoints.model_files import CHAT_TEMPLATES, TOKENIZER
from evomerge.checkpoints.safetensors_files import INDEX
from evomerge.licenses import LEGAL

CARD: Final = "README.md"
RECIPE: Final = "recipe.json"
EMR: Final = "emr.json"
ELECTED: Final = "elected"
MASKS: Final = "masks"
MARKERS: Final = (RECIPE, EMR)  # a folder without one is no export

CODE: Final = "*.py"  # of a base that was allowed to run it
MODEL: Final = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "mergekit.yaml",
    INDEX,
    RECIPE,
    RECIPE_FILES,
    CARD,
    *TOKENIZER,
    CHAT_TEMPLATES,
    *LEGAL,
)
ADAPTER: Final = (SETTINGS_FILE, WEIGHTS_FILE, RECIPE, CARD)
SEVERAL: Final = (EMR, ELECTED, MASKS, CARD)  # models in one artefact
_FOLDERS: Final = (RECIPE_FILES, CHAT_TEMPLATES, ELECTED, MASKS)


def is_of_an_export(path: str) -> bool:
    """Whether a file may belong to an export of any kind.

    Args:
        path: of the file, relative to the folder of the export.
    """
    folder, _, inside = path.partition("/")
    if inside:
        return folder in _FOLDERS
    return any(fnmatch(path, each) for each in (*MODEL, *ADAPTER, *SEVERAL, CODE))
