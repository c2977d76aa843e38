"""Stored tensors that a live model keeps in another form: their places in it, by transformers' own conversion map.

- Holds: the record of a conversion on tensors without numbers, the views that follow from it, live tensors by name,
  modules that PEFT converts.
- Does not hold: numbers, files, and architectures by name, but for the two families that PEFT converts.
- Start reading at: `stored_places.py`.
"""

from __future__ import annotations

from evomerge.conversion.live_places import LivePlace
from evomerge.conversion.live_tensors import LiveTensors
from evomerge.conversion.stored_places import StoredPlaces, find_places, fused_modules

__all__ = ["LivePlace", "LiveTensors", "StoredPlaces", "find_places", "fused_modules"]
