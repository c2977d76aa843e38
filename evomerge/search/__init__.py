"""A search, from its spec to the verdict.

Holds: a run in one page (`run.py`), its stages, the session that they share, and warm starts. Does not hold: the
details of any step, which are in the rooms below. Start reading at `run_search`.
"""
