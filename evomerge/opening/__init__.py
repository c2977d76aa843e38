"""Opens a search: checks its inputs, computes its memory, and creates or resumes its study.

Holds: `Inputs`, memory and placement, the open study with its siblings. Does not hold: anything that scores a
candidate. Start reading at `inputs.py`, then `open_study.py`.
"""
