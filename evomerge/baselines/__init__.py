"""Baselines: sources, and merges that cost no search or a small one, which the winner of a search is compared with.

Holds: a row of facts for each baseline (`info.py`), the plan that builds it (`baseline_plans.py`), the runner that
carries plans out side by side, and the check that a stored baseline is still valid. Does not hold: tests of
significance, which are in `verdict/`. Start reading at `info.py`, then `baseline_plans.py`.

`info.py` is below the rest of this folder: a spec reads it, and loads neither torch nor Optuna for it.
"""
