"""Folders that are written from merges: model directories, and artefacts of several models.

Holds: writing them whole, their cards, the EMR artefact.
Does not hold: reading models (`checkpoints/`), the choice of the merge (`export.py`).
Start reading at `model_writer.py`.
"""

from evomerge.artefacts.card_data import CardFacts
from evomerge.artefacts.model_card import model_card, models_card
from evomerge.artefacts.model_writer import write_model
from evomerge.artefacts.parents import Parent, parents_of

__all__ = ["CardFacts", "Parent", "model_card", "models_card", "parents_of", "write_model"]
