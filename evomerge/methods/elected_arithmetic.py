"""The base plus a weighted sum of trimmed and sign-elected task vectors."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.info import MethodInfo
from evomerge.methods.task_arithmetic import TASK_WEIGHT
from evomerge.methods.ties import DENSITY, TIES_OPTIONS

ELECTED_ARITHMETIC = MethodInfo(
    name="elected_arithmetic",
    title="Base plus a weighted sum of task vectors that TIES has trimmed and sign-elected first",
    paper="AdaMerging++: adaptive model merging for multi-task learning, arXiv 2310.02575",
    formula=(
        "t_i = tau_i where |tau_i| is among the share density_i of the largest, else 0\n"
        "sign = that of sum_i t_i, by element\n"
        "theta = theta_0 + sum of the weight_i * t_i whose t_i has this sign"
    ),
    cost="one pass over base and sources; thresholds for all densities once per worker",
    unsuited="where weights are not learned: TIES searches as many numbers",
    merge="evomerge.elementwise.elected_arithmetic:merge_elected_arithmetic",
    plan="evomerge.elementwise.elected_arithmetic:plan_elected_arithmetic",
    per_source=(
        DENSITY,
        replace(TASK_WEIGHT, description="factor of what is left of each task vector; the election does not see it"),
    ),
    options=tuple(option for option in TIES_OPTIONS if option.name not in ("agg", "weighting")),
    needs=frozenset({"base"}),
    sorts_magnitudes=True,
)
