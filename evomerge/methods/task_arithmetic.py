"""The base plus a weighted sum of task vectors."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter

TASK_WEIGHT = Parameter(
    name="weight",
    per_source=True,
    low=0.0,
    high=1.5,
    default=0.3,
    description="factor of each task vector; a negative one removes a skill",
)

NORMALIZE_OFF = Option("normalize", (False, True), "divide the sum of task vectors by the sum of the weights")

TASK_ARITHMETIC = MethodInfo(
    name="task_arithmetic",
    title="Base plus a weighted sum of task vectors",
    paper="Editing models with task arithmetic, arXiv 2212.04089",
    formula=("theta = theta_0 + sum_i weight_i * tau_i, with the task vectors tau_i = theta_i - theta_0"),
    cost="one pass over base and sources",
    evidence="of six methods the only one that gains reliably (arXiv 2511.21437, four LLMs with 12 fine-tunes each)",
    unsuited="many or long task vectors at full weight: their sum collapses",
    merge="evomerge.elementwise.task_arithmetic:merge_task_arithmetic",
    plan="evomerge.elementwise.task_arithmetic:plan_task_arithmetic",
    per_source=(TASK_WEIGHT,),
    options=(NORMALIZE_OFF,),
    needs=frozenset({"base"}),
    elementwise=True,
    weighted_sum=True,
    mergekit=MergekitMethod(
        name="task_arithmetic",
        base_model="base",
        parameters={"weight": "weight"},
        switches={"normalize": ("normalize", False)},
        semantics={"normalize": False},
        expressed={"normalize": (True, False)},
    ),
)
