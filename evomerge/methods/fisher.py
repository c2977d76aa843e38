"""The average of the sources, each element weighted by its Fisher information."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, Parameter, Statistics

FISHER = MethodInfo(
    name="fisher",
    title="Average of the sources, each element weighted by its Fisher information",
    paper="Merging models with Fisher-weighted averaging, arXiv 2111.09832",
    formula=(
        "theta = sum_i a_i * F_i * theta_i / sum_i a_i * F_i, by element\n"
        "F_i = max(Fisher_i^power, floor), the floor for the first source alone; a_i = weight_i / |Fisher_i^power|"
    ),
    cost="one pass over sources and Fishers, many times slower under a power other than 1; "
    "before it gradients of a few hundred texts per source, once",
    unsuited="without text of every expert, or where gradients of the whole model do not fit",
    merge="evomerge.elementwise.fisher:merge_fisher",
    plan="evomerge.elementwise.fisher:plan_fisher",
    per_source=(
        Parameter(
            name="weight",
            per_source=True,
            low=0.0,
            high=1.0,
            default=1.0,
            description="factor of the source's Fisher; only the ratios matter",
            minimum=0.0,
        ),
    ),
    shared=(
        Parameter(
            name="floor",
            per_source=False,
            low=0.0,
            high=1e-3,
            default=1e-6,
            description="smaller entries of a Fisher are raised to it, before the norm divides them",
            minimum=0.0,
            fixed=True,
        ),
        Parameter(
            name="power",
            per_source=False,
            low=0.0,
            high=1.0,
            default=1.0,
            description="exponent of every entry of a Fisher, before norm and floor; 0 is the weighted average",
            minimum=0.0,
            maximum=1.0,
        ),
    ),
    options=(
        Option(
            "normalize_fisher",
            ("model", "tensor", "none"),
            "divide each Fisher by its L2 norm over all tensors of the model, over each tensor alone, or not at all",
        ),
        Option(
            "floor_on",
            ("target", "all"),
            "the floor is for the first source alone, whose values remain where no source has a Fisher, or for all",
        ),
    ),
    needs=frozenset({"statistics"}),
    relative_weights=True,
    statistics=Statistics(
        "fisher",
        "for each source {tensor name: diagonal Fisher, one number per element}; evomerge.statistics.fisher",
        measured=True,
    ),
)
