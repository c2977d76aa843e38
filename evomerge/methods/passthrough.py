"""One source as it is, or times a number."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Parameter

PASSTHROUGH = MethodInfo(
    name="passthrough",
    title="One source as it is, or times a number",
    paper="none: a method of mergekit's",
    formula="theta = scale * theta_1",
    cost="one pass over the source",
    unsuited="a merge: it is one source",
    merge="evomerge.elementwise.passthrough:merge_passthrough",
    plan="evomerge.elementwise.passthrough:plan_passthrough",
    per_source=(
        Parameter(
            name="scale",
            per_source=True,
            low=0.0,
            high=1.5,
            default=1.0,
            description="factor of every weight; 1 is the source itself",
        ),
    ),
    elementwise=True,
    sources=1,
    mergekit=MergekitMethod(name="passthrough", base_model="none", parameters={"scale": "scale"}, semantics={}),
)
