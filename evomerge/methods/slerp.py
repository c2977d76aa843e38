"""Spherical interpolation."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter

SLERP = MethodInfo(
    name="slerp",
    title="Spherical interpolation between two sources, one angle per tensor",
    paper="Animating rotation with quaternion curves, SIGGRAPH 1985",
    formula=(
        "theta = sin((1 - t) phi) / sin(phi) * A + sin(t phi) / sin(phi) * B\n"
        "phi: the angle between the flattened tensors A and B; nearly parallel ones: (1 - t) A + t B"
    ),
    cost="one pass over the two sources, and one for the angles of a pair, once per worker",
    unsuited="more than two sources, unless a score chooses the pair",
    merge="evomerge.elementwise.slerp:merge_slerp",
    plan="evomerge.elementwise.slerp:plan_slerp",
    shared=(
        Parameter(
            name="t",
            per_source=False,
            low=0.0,
            high=1.0,
            default=0.5,
            description="0 is the first source, 1 the second",
            minimum=0.0,
            maximum=1.0,
        ),
    ),
    options=(Option("multi_model", ("reject",), "more than two sources are refused"),),
    sources=2,
    mergekit=MergekitMethod(
        name="slerp",
        base_model="first source",  # t = 0 is mergekit's base_model
        parameters={"t": "t"},
        semantics={"multi_model": "reject"},
        expressed={"multi_model": ("reject",)},
    ),
)
