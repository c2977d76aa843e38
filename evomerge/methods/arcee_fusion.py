"""The first source, with those elements of the second that matter most."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option

ARCEE_FUSION = MethodInfo(
    name="arcee_fusion",
    title="The first source, with the elements of the second whose change matters exceptionally much",
    paper="none: a method of mergekit's",
    formula=(
        "S = |B - A| * KL(softmax(B) || softmax(A)), the divergence by row, of the sources A and B\n"
        "theta = B where S >= median(S) + 1.5 * (upper quartile - lower quartile of S), by tensor, else A\n"
        "it has no number to search"
    ),
    cost="five passes over the two sources, two of them with exponentials",
    unsuited="a search: it has no number to choose, and the first source prevails",
    merge="evomerge.merging.arcee_fusion:merge_arcee_fusion",
    options=(
        Option(
            "quantiles",
            ("exact", "lower"),
            "quantiles of all elements of a tensor: interpolated, or the lower of the two nearest elements; mergekit "
            "samples large tensors at random, unseeded",
        ),
    ),
    sources=2,
    mergekit=MergekitMethod(
        name="arcee_fusion", base_model="first source", parameters={}, semantics={"quantiles": "lower"}
    ),
)
