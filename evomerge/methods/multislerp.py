"""Interpolation of directions and of lengths, of any number of models."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter

RELATIVE_WEIGHT = Parameter(
    name="weight",
    per_source=True,
    low=0.0,
    high=1.0,
    default=1.0,
    description="share of each source; only the ratios matter",
    minimum=0.0,
)

VECTORS = Option(
    "vectors",
    ("sources", "task_vectors"),
    "interpolate the sources themselves, or their task vectors and add the result to the base",
)

MULTISLERP = MethodInfo(
    name="multislerp",
    title="Mean of directions at the mean length, of any number of sources",
    paper="none: a method of mergekit's",
    formula=(
        "theta = (sum_i w_i |v_i|) * d / |d|, with d = sum_i w_i v_i / |v_i| and w_i = weight_i / sum_k weight_k\n"
        "v_i: theta_i as a flattened tensor; with vectors: task_vectors tau_i, and theta_0 is added"
    ),
    cost="one pass over the sources, and one for their inner products, once per worker",
    unsuited="sources that nearly cancel: there is no mean direction",
    merge="evomerge.elementwise.multislerp:merge_multislerp",
    plan="evomerge.elementwise.multislerp:plan_multislerp",
    per_source=(RELATIVE_WEIGHT,),
    options=(
        VECTORS,
        Option(
            "opposite",
            ("reject", "linear of two"),
            "directions of a tensor that cancel exactly are refused, or two such sources are averaged",
        ),
    ),
    relative_weights=True,
    mergekit=MergekitMethod(
        name="multislerp",
        base_model="none",
        base_under=("vectors", "task_vectors"),
        parameters={"weight": "weight"},
        semantics={"opposite": "linear of two"},
        expressed={"vectors": ("sources", "task_vectors")},
    ),
)
