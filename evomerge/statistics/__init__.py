"""Statistics of a source on its calibration data, measured once and given to merges.

- Holds: diagonal Fishers and Grams of layer inputs, one file each, and the measurement of a source text by text.
- Does not hold: merges (`evomerge.elementwise.fisher`, `regmean`); the choice of calibration data.
- Start reading at: `grams.py`.
"""

from evomerge.statistics.fisher import exact_fisher, sampled_fisher
from evomerge.statistics.grams import input_grams

__all__ = ["exact_fisher", "input_grams", "sampled_fisher"]
