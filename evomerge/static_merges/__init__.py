"""Static merges: one merge without a search, from a file that describes it.

- Holds: recipes read from files of ours and of mergekit's, the models that they name, the merge written as it is made.
- Does not hold: arithmetic, and the writing of a model directory (`evomerge.artefacts`).
- Start reading at: `static_merge.py`.
"""
