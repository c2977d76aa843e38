"""Linear layers merged by regression on the inputs of each source's layers."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, Parameter, Statistics

REGMEAN = MethodInfo(
    name="regmean",
    title="RegMean: linear layers closest, on each source's own inputs, to its outputs; the average elsewhere",
    paper="Dataless knowledge fusion by merging weights of language models (RegMean), arXiv 2212.09849",
    formula=(
        "linear weights: W' = (sum_i weight_i * G_i)^-1 * sum_i weight_i * G_i * W_i'\n"
        "G_i: Gram X'X of the layer's inputs, off its diagonal times scaling, plus ridge on it\n"
        "all other tensors: the weighted average"
    ),
    cost="one solve per linear weight, O(inputs^3): 0.06 s for 1024; before it a forward pass per source on its texts",
    unsuited="very wide layers: a Gram has inputs x inputs numbers; embeddings, heads and norms are averaged",
    merge="evomerge.merging.regmean:merge_regmean",
    per_source=(
        Parameter(
            name="weight",
            per_source=True,
            low=0.0,
            high=1.0,
            default=1.0,
            description="factor of the source's Grams; only the ratios matter",
            minimum=0.0,
        ),
    ),
    shared=(
        Parameter(
            name="scaling",
            per_source=False,
            low=0.1,
            high=1.0,
            default=0.9,
            description="factor of what is off the diagonal of a Gram; 1 is plain least squares",
            minimum=0.0,
            maximum=1.0,
        ),
        Parameter(
            name="ridge",
            per_source=False,
            low=0.0,
            high=0.1,
            default=0.0,
            description="added to the diagonal of every Gram; it draws a layer towards the weighted average",
            minimum=0.0,
        ),
    ),
    options=(
        Option("solve", ("fp64",), "the linear equations are solved in float64"),
        Option(
            "bias",
            ("mean", "joint"),
            "average the biases, or solve for them together with the weight: Grams of layers with a bias then have the "
            "constant 1 as their last input",
        ),
    ),
    needs=frozenset({"statistics"}),
    relative_weights=True,
    statistics=Statistics(
        "grams",
        "for each source {name of the weight: Gram [inputs, inputs]}; evomerge.statistics.grams",
        of_tied=False,
        measured=True,
        switches={"constant": ("bias", "joint")},
    ),
)
