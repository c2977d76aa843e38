"""Folders that are written from merges: model directories, and artefacts of several models.

Holds: writing them whole, their cards, the EMR artefact.
Does not hold: reading models (`checkpoints/`), the choice of the merge (`export.py`).
Start reading at `model_writer.py`.
"""

from evomerge.artefacts.model_card import Parent, license_warnings, model_card, models_card
from evomerge.artefacts.model_writer import write_model

__all__ = ["Parent", "license_warnings", "model_card", "models_card", "write_model"]
