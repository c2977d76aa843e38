"""Spherical interpolation along whole tensors, rows or columns."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option
from evomerge.methods.multislerp import RELATIVE_WEIGHT, VECTORS

NUSLERP = MethodInfo(
    name="nuslerp",
    title="Spherical interpolation between two sources or their task vectors, by tensor, row or column",
    paper="Animating rotation with quaternion curves, SIGGRAPH 1985; this form is a method of mergekit's",
    formula=(
        "theta = (sin((1 - t) phi) * v_1 + sin(t phi) * v_2) / sin(phi), with t = weight_2 / (weight_1 + weight_2)\n"
        "v_k: theta_k; with vectors: task_vectors tau_k, and theta_0 is added\n"
        "phi: the angle between v_1 and v_2, of a tensor, row or column; |sin(phi)| < 1e-8: (1 - t) v_1 + t v_2"
    ),
    cost="one pass over the two sources, and one for the angles, by tensor once per worker",
    unsuited="more than two sources",
    merge="evomerge.merging.nuslerp:merge_nuslerp",
    plan="evomerge.merging.nuslerp:plan_nuslerp",
    per_source=(RELATIVE_WEIGHT,),
    options=(
        Option(
            "units",
            ("tensor", "rows", "columns"),
            "what has an angle of its own: each tensor, each of its rows, or each of its columns",
        ),
        VECTORS,
    ),
    relative_weights=True,
    sources=2,
    mergekit=MergekitMethod(
        name="nuslerp",
        base_model="none",
        base_under=("vectors", "task_vectors"),
        parameters={"weight": "weight"},
        # What mergekit calls row-wise has an angle for each index of the last dimension: measured, not as documented.
        selections={"nuslerp_flatten": ("units", "tensor"), "nuslerp_row_wise": ("units", "columns")},
        semantics={},
        expressed={"units": ("tensor", "rows", "columns"), "vectors": ("sources", "task_vectors")},
    ),
)
