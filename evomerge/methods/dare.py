"""DARE: drop elements of task vectors at random and rescale, before task arithmetic or TIES."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, MissingParameter, Option, Parameter
from evomerge.methods.task_arithmetic import NORMALIZE_OFF, TASK_WEIGHT
from evomerge.methods.ties import DENSITY, LAMBDA, MERGEKIT_TIES, TIES_OPTIONS

DROP_RATE = Parameter(
    name="drop_rate",
    per_source=True,
    low=0.0,
    high=0.95,
    default=0.1,
    description="probability with which an element of the task vector is dropped",
    minimum=0.0,
    maximum=1.0,
)

DARE_OPTIONS = (
    Option(
        "rescale",
        ("1/(1-p)", "none", "l1_match"),
        "factor of the survivors: 1/(1-p), so that the mean over masks is the task vector; none; or whatever restores "
        "the L1 norm of the tensor",
    ),
    Option("targets", ("all", "linear"), "drop from all tensors, or from two-dimensional ones only"),
    Option("delta_only", (True,), "the task vector is masked, never the weights themselves"),
)

DARE_LINEAR = MethodInfo(
    name="dare_linear",
    title="DARE: drop elements of task vectors at random, rescale, then task arithmetic",
    paper="Language models are super Mario (DARE), arXiv 2311.03099",
    formula=(
        "t_i = tau_i / (1 - drop_rate_i), or 0 with probability drop_rate_i, drawn for each element\n"
        "theta = theta_0 + sum_i weight_i * t_i"
    ),
    cost="one pass over base and sources; masks are drawn in passing",
    evidence="WizardLM with WizardMath answers GSM8K as WizardMath does (its authors, arXiv 2311.03099)",
    unsuited="large task vectors: what is left is divided by its share, and the noise grows with it",
    merge="evomerge.elementwise.dare:merge_dare_linear",
    plan="evomerge.elementwise.dare:plan_dare_linear",
    per_source=(DROP_RATE, TASK_WEIGHT),
    options=(*DARE_OPTIONS, NORMALIZE_OFF),
    needs=frozenset({"base"}),
    random=True,
    mergekit=MergekitMethod(
        name="dare_linear",
        base_model="base",
        parameters={"weight": "weight"},
        complements={"drop_rate": "density"},
        switches={"normalize": ("normalize", False), "rescale": ("rescale", "none")},
        semantics={"rescale": "l1_match", "targets": "all", "normalize": False},
        expressed={"normalize": (True, False), "rescale": ("none",), "targets": ("all",), "delta_only": (True,)},
    ),
)

DARE_TIES = MethodInfo(
    name="dare_ties",
    title="DARE: drop elements of task vectors at random, rescale, then TIES",
    paper="Language models are super Mario (DARE), arXiv 2311.03099; TIES-Merging, arXiv 2306.01708",
    formula=(
        "d_i = tau_i / (1 - drop_rate_i), or 0 with probability drop_rate_i, drawn for each element\n"
        "t_i = d_i where |d_i| is among the share density_i of the largest, else 0\n"
        "theta = theta_0 + lambda * (mean of the weight_i * t_i with the sign of their sum), by element"
    ),
    cost="one pass over base and sources; masks are drawn in passing, thresholds inferred from those of TIES",
    evidence="no better than TIES in examples/smollm2",
    unsuited="large task vectors: what is left is divided by its share, and the noise grows with it",
    merge="evomerge.elementwise.dare:merge_dare_ties",
    plan="evomerge.elementwise.dare:plan_dare_ties",
    per_source=(
        DROP_RATE,
        DENSITY,
        Parameter(
            name="weight",
            per_source=True,
            low=0.0,
            high=2.0,
            default=1.0,
            description="factor of each masked and trimmed task vector",
        ),
    ),
    shared=(LAMBDA,),
    options=(
        *DARE_OPTIONS,
        Option("dare_ties", ("retrim", "no_trim"), "trim the masked vectors, or elect and merge only"),
        *TIES_OPTIONS,
    ),
    needs=frozenset({"base"}),
    sorts_magnitudes=True,
    random=True,
    mergekit=MergekitMethod(
        name="dare_ties",
        base_model="base",
        parameters={"lambda": "lambda", "weight": "weight"},
        complements={"drop_rate": "density"},
        missing=(
            MissingParameter(
                name="density",
                neutral=1.0,
                unused_under=("dare_ties", "no_trim"),
                reason="mergekit's dare_ties does not trim what DARE has left, and this recipe does",
            ),
        ),
        switches={"normalize": ("weighting", "sum"), "rescale": ("rescale", "none")},
        semantics={
            "rescale": "l1_match",
            "targets": "all",
            "dare_ties": "no_trim",
            **MERGEKIT_TIES,
            "kept_rule": "topk",  # of no effect without trimming
            "weighting": "sum",
        },
        expressed={
            "rescale": ("none",),
            "targets": ("all",),
            "delta_only": (True,),
            "dare_ties": ("retrim", "no_trim"),
            "weighting": ("norm", "sum"),
        },
    ),
)
