"""The base plus task vectors with learned coefficients per input column."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Parameter, TensorParameter

COLUMN_ARITHMETIC = MethodInfo(
    name="column_arithmetic",
    title="Base plus task vectors, each input column with a learned coefficient of its own",
    paper="none: task arithmetic (arXiv 2212.04089) with the columns of DAM (arXiv 2410.08371)",
    formula=(
        "W[:, j] = W_0[:, j] + sum_i weight_i * c_i[j] * tau_i[:, j], with a learned c_i[j] for source i and input "
        "column j\n"
        "norms and embeddings likewise by element or column; biases with one number per source"
    ),
    cost="one pass over base and sources, and before it a training of tens of steps with gradients",
    unsuited="without a training: its coefficients are learned, never searched",
    merge="evomerge.elementwise.column_arithmetic:merge_column_arithmetic",
    per_source=(
        Parameter(
            name="weight",
            per_source=True,
            low=0.0,
            high=1.5,
            default=1.0,
            description="factor of all coefficients of a source",
        ),
    ),
    needs=frozenset({"base"}),
    elementwise=True,
    tensors=(
        TensorParameter(
            "coefficients",
            "for each source {tensor name: tensor}, broadcast to the weight: one number per input column, per "
            "element of a norm, or one in all",
        ),
    ),
)
