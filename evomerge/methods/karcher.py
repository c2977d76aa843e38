"""The Karcher mean of the sources' directions."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, MissingParameter
from evomerge.methods.multislerp import RELATIVE_WEIGHT

KARCHER = MethodInfo(
    name="karcher",
    title="Karcher mean: the direction whose squared angles to the sources sum to the least, at the mean length",
    paper="reading as a Fisher-Rao mean: arXiv 2603.04972; also a method of mergekit's",
    formula=(
        "u = argmin over unit vectors of sum_i a_i * angle(u, theta_i)^2, with a_i = weight_i / sum_k weight_k\n"
        "theta = (sum_i a_i |theta_i|) * u, with flattened tensors; at most 10 steps, until one is shorter than 1e-5"
    ),
    cost="one pass over the sources, and one for their inner products, once per worker",
    unsuited="task vectors of a common base: near the base it is nearly their average",
    merge="evomerge.elementwise.karcher:merge_karcher",
    plan="evomerge.elementwise.karcher:plan_karcher",
    per_source=(RELATIVE_WEIGHT,),
    relative_weights=True,
    mergekit=MergekitMethod(
        name="karcher",
        base_model="none",
        parameters={},
        missing=(
            MissingParameter(
                name="weight",
                neutral=None,
                unused_under=None,
                reason="mergekit's karcher gives all models the same weight, and this recipe does not",
            ),
        ),
        semantics={},
    ),
)
