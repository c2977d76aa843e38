"""The sanity probe: does a merge still read, write and end as its sources do?

Holds: a short neutral text with openings and questions, the probe of a live model, its judgement against the sources,
records of it in a study.
Does not hold: scores and the choice of a winner. A probe warns, it never ranks.
Start reading at: `sanity_figures.py`, then `judgement.py` and `sanity_probe.py`.
"""
