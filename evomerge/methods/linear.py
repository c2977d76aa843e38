"""The weighted average of the sources."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter

LINEAR = MethodInfo(
    name="linear",
    title="Weighted average of the sources (model soup)",
    paper="Model soups, arXiv 2203.05482",
    formula=("theta = sum_i weight_i * theta_i / sum_i weight_i\nwith normalize: false without the divisor"),
    cost="one pass over the sources",
    evidence="below TIES in examples/smollm2, whose experts forgot each other's skills",
    unsuited="experts of different skills: each keeps 1/n of its task vector",
    merge="evomerge.elementwise.linear:merge_linear",
    plan="evomerge.elementwise.linear:plan_linear",
    per_source=(
        Parameter(
            name="weight",
            per_source=True,
            low=0.0,
            high=1.0,
            default=1.0,
            description="share of each source",
            minimum=0.0,
        ),
    ),
    options=(Option("normalize", (True, False), "divide by the sum of the weights"),),
    elementwise=True,
    weighted_sum=True,
    mergekit=MergekitMethod(
        name="linear",
        base_model="none",
        parameters={"weight": "weight"},
        switches={"normalize": ("normalize", False)},
        semantics={"normalize": True},
        expressed={"normalize": (True, False)},
    ),
)
