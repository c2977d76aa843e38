"""Searches of mergekit-evolve as searches of ours.

- Holds: its configuration read and checked, the space, spec and evaluator that follow from it, the tasks that it names.
- Does not hold: mergekit, which is never imported, and files of single merges (`evomerge.mergekit`).
- Start reading at: `search_folder.py`.
"""
