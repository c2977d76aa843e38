"""Consensus task arithmetic: the elements that matter to several task vectors."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.info import MethodInfo, Parameter
from evomerge.methods.task_arithmetic import TASK_WEIGHT

CONSENSUS = MethodInfo(
    name="consensus",
    title="Base plus a weighted sum of task vectors where an element matters to enough of them (TALL masks)",
    paper="Localizing task information for improved model merging and compression, arXiv 2405.07813",
    formula=(
        "M_i = 1 where |tau_i| > threshold_i * |tau - tau_i|, with tau = sum_i tau_i, else 0\n"
        "theta = theta_0 + sum_i weight_i * tau_i where sum_i M_i >= agreement, else theta_0, by element"
    ),
    cost="one pass over base and sources",
    unsuited="two experts: what only one of them has changed, which is most of both, is dropped",
    merge="evomerge.elementwise.consensus:merge_consensus",
    plan="evomerge.elementwise.consensus:plan_consensus",
    per_source=(
        replace(TASK_WEIGHT, description="factor of each task vector; the masks do not see it"),
        Parameter(
            name="threshold",
            per_source=True,
            low=0.2,
            high=0.6,
            default=0.4,
            description="share of the other task vectors' sum above which an element matters to this one",
            minimum=0.0,
        ),
    ),
    shared=(
        Parameter(
            name="agreement",
            per_source=False,
            low=1.0,
            high=4.0,
            default=2.0,
            description="number of task vectors to which an element has to matter; above their number it is the base",
            minimum=0.0,
            fixed=True,
        ),
    ),
    needs=frozenset({"base"}),
    elementwise=True,
)
