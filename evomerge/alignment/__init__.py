"""Alignment of the units of one model to those of another by optimal transport.

- Holds: costs and transport plans, maps of units, chains of layers, the units of transformers that may move.
- Does not hold: the merge of what has been aligned (`evomerge.merging.ot_fusion`).
- Start reading at: `transport.py`, then `unit_alignment.py`.
"""
