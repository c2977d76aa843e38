"""Model Breadcrumbs: neither the smallest nor the largest elements of task vectors."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter
from evomerge.methods.ties import LAMBDA, TIES_OPTIONS

ELECTION_OPTIONS = (
    *(option for option in TIES_OPTIONS if option.name in ("elect", "agg", "weighting")),
    Option("zero_sign", ("plus",), "the sign of an exactly zero sum is +1"),
)

SPARSE_WEIGHT = Parameter(
    name="weight",
    per_source=True,
    low=0.0,
    high=2.0,
    default=1.0,
    description="factor of what is left of each task vector; a negative one removes a skill",
)

_DENSITY = Parameter(
    name="density",
    per_source=True,
    low=0.1,
    high=1.0,
    default=0.9,
    description="share of each tensor's elements that is kept",
    minimum=0.0,
    maximum=1.0,
)

_GAMMA = Parameter(
    name="gamma",
    per_source=True,
    low=1e-4,
    high=0.1,
    default=0.01,
    description="share of each tensor's elements that is dropped from the largest on; all others from the smallest on",
    minimum=0.0,
    maximum=1.0,
)

# `exact` is the value of TIES with this meaning.
KEPT_RULE = Option(
    "kept_rule",
    ("tied", "exact"),
    "of elements that are tied at a bound, tied keeps all; exact keeps the first ones, as many as the share says, and "
    "nothing at a share of 0",
    late=True,
)

_FORMULA = (
    "t_i = tau_i without the gamma_i * d largest |tau_i| and the (1 - density_i - gamma_i) * d smallest of d elements\n"
    "where gamma_i > 1 - density_i, the (1 - density_i) * d largest alone are dropped\n"
)

_COST = "two passes over base and sources, of which the first finds the bounds; magnitudes are sorted once per worker"
_PAPER = "Model breadcrumbs, arXiv 2312.06795; drops by tensor as in mergekit"

BREADCRUMBS = MethodInfo(
    name="breadcrumbs",
    title="Base plus task vectors without their smallest and their largest elements",
    paper=_PAPER,
    formula=_FORMULA + "theta = theta_0 + lambda * sum_i weight_i * t_i",
    cost=_COST,
    unsuited="task vectors whose largest elements carry the skill: they are what gamma drops",
    merge="evomerge.elementwise.breadcrumbs:merge_breadcrumbs",
    plan="evomerge.elementwise.breadcrumbs:plan_breadcrumbs",
    per_source=(_DENSITY, _GAMMA, SPARSE_WEIGHT),
    shared=(LAMBDA,),
    options=(KEPT_RULE,),
    needs=frozenset({"base"}),
    sorts_magnitudes=True,
    mergekit=MergekitMethod(
        name="breadcrumbs",
        base_model="base",
        parameters={"density": "density", "gamma": "gamma", "lambda": "lambda", "weight": "weight"},
        fixed={"normalize": False},
        semantics={"kept_rule": "exact"},
    ),
)

BREADCRUMBS_TIES = MethodInfo(
    name="breadcrumbs_ties",
    title="Task vectors without their smallest and largest elements, then the election of TIES",
    paper=f"{_PAPER}; TIES-Merging, arXiv 2306.01708",
    formula=(
        _FORMULA + "theta = theta_0 + lambda * (mean of the weight_i * t_i with the sign of their sum), by element"
    ),
    cost=_COST,
    unsuited="task vectors whose largest elements carry the skill: they are what gamma drops",
    merge="evomerge.elementwise.breadcrumbs:merge_breadcrumbs_ties",
    plan="evomerge.elementwise.breadcrumbs:plan_breadcrumbs_ties",
    per_source=(_DENSITY, _GAMMA, SPARSE_WEIGHT),
    shared=(LAMBDA,),
    options=(*ELECTION_OPTIONS, KEPT_RULE),
    needs=frozenset({"base"}),
    sorts_magnitudes=True,
    mergekit=MergekitMethod(
        name="breadcrumbs_ties",
        base_model="base",
        parameters={"density": "density", "gamma": "gamma", "lambda": "lambda", "weight": "weight"},
        switches={"normalize": ("weighting", "sum")},
        semantics={
            "elect": "mass",
            "zero_sign": "plus",
            "agg": "dis-mean",
            "weighting": "sum",
            "kept_rule": "exact",
        },
        expressed={"weighting": ("norm", "sum")},
    ),
)
