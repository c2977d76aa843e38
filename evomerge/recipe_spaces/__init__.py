"""Search spaces whose merges are made of other merges, which are there before the first trial.

- Holds: mixtures of the baselines (`from: baselines`), multiples of the coefficients of one merge (`around: RECIPE`),
  their corners, and the merge that a trial grew from.
- Does not hold: making the baselines, or storing which of them a study took (`search/`, `study/`).
- Start reading at: `recipe_space.py`, then `mixture.py`.
"""
