"""TIES: trim, elect signs, merge."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, OptionValue, Parameter

DENSITY = Parameter(
    name="density",
    per_source=True,
    low=0.05,
    high=0.6,
    default=0.2,
    description="share of each task vector that is kept, largest magnitudes first",
    minimum=0.0,
    maximum=1.0,
)

LAMBDA = Parameter(
    name="lambda",
    per_source=False,
    low=0.3,
    high=2.5,
    default=1.0,
    description="factor of the merged task vector; search 0.1 to 0.6 with agg: dis-sum",
)

TIES_OPTIONS = (
    Option(
        "trim_scope",
        ("global", "tensor", "layer_group"),
        "over what the density is measured: all mergeable tensors, each tensor alone, or those of one layer or group",
    ),
    Option(
        "kept_rule",
        ("ge_kth", "topk", "mask_rate", "exact"),
        "ge_kth keeps int(dK)+1 of d elements and those tied with the last; topk keeps int(dK), at least one, but in a "
        "search all that are tied; mask_rate drops int(d(1-K))-1; exact keeps int(dK) everywhere, of tied ones the "
        "first, and nothing at density 0. Density 1 keeps everything under each",
    ),
    Option("elect", ("mass", "count"), "the sign of an element is that of the sum of values, or of the sum of signs"),
    Option(
        "zero_sign",
        ("global majority", "plus"),
        "the sign of an exactly zero sum: that of most elements of the trim scope (negative where they balance), or +1",
    ),
    Option("agg", ("dis-mean", "dis-sum", "dis-max"), "mean, sum or largest magnitude of what has the elected sign"),
    Option(
        "weighting",
        ("count", "norm", "sum"),
        "what dis-mean divides the weighted sum by: the number of kept values, the sum of their weights, or nothing",
    ),
)

MERGEKIT_TIES: dict[str, OptionValue] = {
    "trim_scope": "tensor",
    "kept_rule": "exact",
    "elect": "mass",
    "zero_sign": "plus",
    "agg": "dis-mean",
}

TIES = MethodInfo(
    name="ties",
    title="TIES: trim task vectors, elect signs, merge what agrees",
    paper="TIES-Merging, arXiv 2306.01708",
    formula=(
        "t_i = tau_i where |tau_i| is among the share density_i of the largest, else 0\n"
        "sign = that of sum_i weight_i * t_i, by element\n"
        "theta = theta_0 + lambda * (mean of the weight_i * t_i that have this sign and are not 0)"
    ),
    cost="one pass over base and sources; thresholds for all densities once per worker",
    evidence=(
        "no reliable gain (arXiv 2511.21437, four LLMs with 12 fine-tunes each); above task arithmetic in "
        "examples/smollm2"
    ),
    unsuited="before task arithmetic was tried: it has a density more to choose",
    merge="evomerge.elementwise.ties:merge_ties",
    plan="evomerge.elementwise.ties:plan_ties",
    per_source=(
        DENSITY,
        Parameter(
            name="weight",
            per_source=True,
            low=0.0,
            high=2.0,
            default=1.0,
            description="factor of each trimmed task vector",
        ),
    ),
    shared=(LAMBDA,),
    options=TIES_OPTIONS,
    needs=frozenset({"base"}),
    sorts_magnitudes=True,
    mergekit=MergekitMethod(
        name="ties",
        base_model="base",
        parameters={"density": "density", "lambda": "lambda", "weight": "weight"},
        switches={"normalize": ("weighting", "sum")},
        semantics={**MERGEKIT_TIES, "weighting": "norm"},
        expressed={"weighting": ("norm", "sum")},
    ),
)
