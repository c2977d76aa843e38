"""Pieces that genomes are made of: genes with names and ranges, groups of layers, pairs, an order of arrival.

- Holds: what the genomes of other searches and our own spaces share, and the settings by which a space names a genome.
- Does not hold: the genomes themselves, and what binds them to a model (`evomerge.spaces`).
- Start reading at: `genes.py`.
"""
