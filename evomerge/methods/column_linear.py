"""The sum of the sources with trained weights per input column."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, TensorParameter

COLUMN_LINEAR = MethodInfo(
    name="column_linear",
    title="Sum of the sources, each input column with a trained weight of its own (DAM)",
    paper="Differentiable adaptive merging (DAM), arXiv 2410.08371",
    merge="evomerge.elementwise.column_linear:merge_column_linear",
    options=(
        Option("phi", ("identity", "tanh", "sigmoid", "relu"), "what a coefficient goes through before it weighs"),
    ),
    elementwise=True,
    tensors=(
        TensorParameter(
            "coefficients",
            "for each source {tensor name: tensor}, broadcast to the weight: one number per input column, per "
            "element of a norm, or one in all",
            options=("phi",),
        ),
    ),
)
