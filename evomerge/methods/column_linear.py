"""The sum of the sources with trained weights per input column."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, TensorParameter

COLUMN_LINEAR = MethodInfo(
    name="column_linear",
    title="Sum of the sources, each input column with a trained weight of its own (DAM)",
    paper="Differentiable adaptive merging (DAM), arXiv 2410.08371",
    formula=(
        "W[:, j] = sum_i phi(c_i[j]) * W_i[:, j], with a trained c_i[j] for source i and input column j\n"
        "norms and embeddings likewise by element or column; biases with one number per source"
    ),
    cost="one pass over the sources, and before it a training of up to thousands of steps with gradients",
    evidence="above TIES and DARE-TIES in examples/smollm2",
    unsuited="without a training on text of every expert: its weights are never searched",
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
