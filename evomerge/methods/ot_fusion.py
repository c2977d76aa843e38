"""OT fusion: averaging after an alignment of units by optimal transport."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, Parameter, Statistics

OT_FUSION = MethodInfo(
    name="ot_fusion",
    title="The first source with its units in the order of the second's, interpolated with the second",
    paper="arXiv 1910.05653",
    formula=(
        "layer by layer: A' = T' A T_before, with T the transport of least cost from the units of A to those of B\n"
        "theta = (1 - t) * A' + t * B"
    ),
    cost="one assignment per layer, O(units^3): 0.05 s for 1024 units, 0.35 s for 2048; one pass over both sources",
    unsuited="fine-tunes of one base: their units are in one order already",
    merge="evomerge.merging.ot_fusion:merge_ot_fusion",
    shared=(
        Parameter(
            name="t",
            per_source=False,
            low=0.0,
            high=1.0,
            default=0.5,
            description="0 is the aligned first source, 1 the second",
            minimum=0.0,
            maximum=1.0,
        ),
        Parameter(
            name="reg",
            per_source=False,
            low=1e-3,
            high=1.0,
            default=1e-2,
            description="weight of the entropy for solver: sinkhorn",
            minimum=1e-12,
            fixed=True,
        ),
    ),
    options=(
        Option("mode", ("wts", "acts"), "compare units by their incoming weights, or by activations"),
        Option("cost", ("euclidean", "squared", "cosine"), "distance between two units"),
        Option(
            "cost_scaling",
            ("none", "log", "max", "median", "mean"),
            "log(1 + cost), or division by the largest, median or mean cost of the layer",
        ),
        Option("unit_rows", (False, True), "divide the vector of every unit by its norm first"),
        Option("solver", ("exact", "sinkhorn"), "transport of least cost, or with an entropy"),
        Option("correction", (True, False), "divide transport plans by their marginals"),
        Option("past_correction", (True, False), "apply plans to weights with aligned inputs, or to those as they are"),
        Option(
            "marginals",
            ("column_sums", "uniform", "row_sums"),
            "marginals that plans are divided by; the last two for equal widths only",
        ),
        Option("align_output", (True, False), "align the outputs of the last layer of a chain, too"),
    ),
    sources=2,
    same_shapes=False,
    statistics=Statistics(
        "activations",
        "for each source {weight name: [samples, units]}, outputs before the non-linearity, for mode: acts",
        needed_under=("mode", "acts"),
    ),
)
