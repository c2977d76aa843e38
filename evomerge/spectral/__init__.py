"""Merges of task vectors as matrices, by their singular values and directions.

- Holds: TSV-M, Iso-C and WUDI: the merged matrix of each linear weight, and what is made of it for a candidate.
- Does not hold: OPCM, whose models arrive one after the other (`evomerge.merging`), and the memory of decompositions
  (`evomerge.bank.memory`).
- Start reading at: `task_matrices.py`.
"""
