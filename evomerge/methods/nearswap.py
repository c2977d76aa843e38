"""The first source, moved towards the second by a limited step."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Parameter

NEARSWAP = MethodInfo(
    name="nearswap",
    title="The first source, each element moved towards the second by t at most",
    paper="none: a method of mergekit's",
    formula=(
        "theta = A + clip(B - A, -t, t), by element, of the sources A and B\n"
        "what differs by at most t is taken from B; in terms of a weight: (1 - w) A + w B with w = min(1, t / |B - A|)"
    ),
    cost="one pass over the two sources",
    unsuited="more than two sources, or a base: it knows no task vectors",
    merge="evomerge.elementwise.nearswap:merge_nearswap",
    plan="evomerge.elementwise.nearswap:plan_nearswap",
    shared=(
        Parameter(
            name="t",
            per_source=False,
            low=1e-5,
            high=1e-2,
            default=1e-3,
            description="largest change of an element, in the unit of the weights; 0 is the first source",
            minimum=0.0,
        ),
    ),
    elementwise=True,
    sources=2,
    mergekit=MergekitMethod(name="nearswap", base_model="first source", parameters={"t": "t"}, semantics={}),
)
