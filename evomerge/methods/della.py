"""DELLA: drop elements of task vectors at random, large ones less often, before task arithmetic or an election."""

from __future__ import annotations

from evomerge.methods.breadcrumbs import ELECTION_OPTIONS, SPARSE_WEIGHT
from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter
from evomerge.methods.ties import LAMBDA

_DENSITY = Parameter(
    name="density",
    per_source=True,
    low=0.05,
    high=0.95,
    default=0.5,
    description="mean probability with which an element of the task vector is kept",
    minimum=0.0,
    maximum=1.0,
)

_SPREAD = Parameter(
    name="spread",
    per_source=True,
    low=0.0,
    high=0.9,
    default=0.5,
    description="how far the probability of the largest element of a row is above the density and that of the smallest "
    "below it, as a share of what 0 and 1 allow; 0 drops like DARE",
    minimum=0.0,
    maximum=1.0,
)

_RESCALE = Option(
    "rescale",
    ("1/p", "l1_match", "none"),
    "factor of the survivors: 1/p, so that the mean over masks is the task vector; whatever restores the L1 norm of "
    "the tensor; or none",
)

_FORMULA = (
    "e_i = spread_i * min(density_i, 1 - density_i)\n"
    "p = density_i - e_i + 2 e_i (r - 1) / (K - 1), with r the rank of |tau_i| in its row of K, the smallest first\n"
    "t_i = tau_i / p with probability p, else 0, drawn for each element; K = 1: p = density_i\n"
)

_COST = "one pass over base and sources; a sort of every row of every task vector once per worker"

_PARAMETERS = {"density": "density", "lambda": "lambda", "weight": "weight"}
_DERIVED = {"epsilon": ("evomerge.merging.della:half_width", ("density", "spread"))}

DELLA_LINEAR = MethodInfo(
    name="della_linear",
    title="DELLA: drop elements of task vectors at random, small ones more often, then task arithmetic",
    paper="DELLA-Merging, arXiv 2406.11617, as mergekit's documentation has it",
    formula=_FORMULA + "theta = theta_0 + lambda * sum_i weight_i * t_i",
    cost=_COST,
    unsuited="large task vectors: what is left is divided by its share, and the noise grows with it",
    merge="evomerge.merging.della:merge_della_linear",
    plan="evomerge.merging.della:plan_della_linear",
    per_source=(_DENSITY, _SPREAD, SPARSE_WEIGHT),
    shared=(LAMBDA,),
    options=(_RESCALE,),
    needs=frozenset({"base"}),
    keeps_ranks=True,
    random=True,
    mergekit=MergekitMethod(
        name="della_linear",
        base_model="base",
        parameters=_PARAMETERS,
        derived=_DERIVED,
        switches={"rescale": ("rescale", "none")},
        fixed={"normalize": False},
        semantics={"rescale": "l1_match"},
        expressed={"rescale": ("none",)},
    ),
)

DELLA = MethodInfo(
    name="della",
    title="DELLA: drop elements of task vectors at random, small ones more often, then the election of TIES",
    paper="DELLA-Merging, arXiv 2406.11617, as mergekit's documentation has it; TIES-Merging, arXiv 2306.01708",
    formula=(
        _FORMULA + "theta = theta_0 + lambda * (mean of the weight_i * t_i with the sign of their sum), by element"
    ),
    cost=_COST,
    unsuited="large task vectors: what is left is divided by its share, and the noise grows with it",
    merge="evomerge.merging.della:merge_della",
    plan="evomerge.merging.della:plan_della",
    per_source=(_DENSITY, _SPREAD, SPARSE_WEIGHT),
    shared=(LAMBDA,),
    options=(_RESCALE, *ELECTION_OPTIONS),
    needs=frozenset({"base"}),
    keeps_ranks=True,
    random=True,
    mergekit=MergekitMethod(
        name="della",
        base_model="base",
        parameters=_PARAMETERS,
        derived=_DERIVED,
        switches={"normalize": ("weighting", "sum"), "rescale": ("rescale", "none")},
        semantics={
            "rescale": "l1_match",
            "elect": "mass",
            "zero_sign": "plus",
            "agg": "dis-mean",
            "weighting": "norm",
        },
        expressed={"rescale": ("none",), "weighting": ("norm", "sum")},
    ),
)
