"""The base plus a weighted sum of task vectors whose elements have changed places: a control, no merge to use."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo
from evomerge.methods.task_arithmetic import TASK_WEIGHT

PERMUTED_ARITHMETIC = MethodInfo(
    name="permuted_arithmetic",
    title="A control: task arithmetic with the elements of each task vector permuted at random in each tensor",
    paper="none; random sources as a control: arXiv 2602.12323",
    formula=(
        "p_i = tau_i with its elements in a random order, in each tensor and for each source another one\n"
        "theta = theta_0 + sum_i weight_i * p_i"
    ),
    cost="one pass over base and sources, read in random order",
    unsuited="a model to use: it is a control that knows nothing of the skills",
    merge="evomerge.merging.permuted_arithmetic:merge_permuted_arithmetic",
    per_source=(TASK_WEIGHT,),
    needs=frozenset({"base"}),
    random=True,
)
