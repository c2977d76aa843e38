"""Evolutionary model merging: search the merges of a base model and its fine-tunes for one that is good at everything."""

__version__ = "0.1.0"
