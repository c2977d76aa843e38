"""CMA-ES as arithmetic: params in the unit cube, the strategy, and an evolution that is told results as they come.

- Holds: what the samplers `cma` and `catcma` compute with, and the one file that imports pycma.
- Does not hold: samplers, trials and studies (`evomerge.samplers`).
- Start reading at: `cma_evolution.py`, then `cma_strategy.py`.
"""
