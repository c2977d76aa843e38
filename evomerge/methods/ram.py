"""RAM: averages where sparse task vectors overlap, and keeps in full what one source alone has changed."""

from __future__ import annotations

from dataclasses import replace

from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter

_EPSILON = Parameter(
    name="epsilon",
    per_source=False,
    low=1e-8,
    high=1e-3,
    default=1e-5,
    description="an element is changed where |tau_i| is larger, in the unit of the weights",
    minimum=0.0,
    fixed=True,
)

RAM = MethodInfo(
    name="ram",
    title="RAM: by element the mean over those sources alone that have changed it",
    paper="Reinforced agent merging (RAM), arXiv 2601.13572, as mergekit's documentation has it",
    formula=(
        "a_i = 1 where |tau_i| > epsilon, else 0; c = sum_i a_i, by element\n"
        "theta = theta_0 + sum_i a_i * tau_i / max(c, 1)\n"
        "for task vectors that are truly sparse, as after reinforcement learning; otherwise nearly the mean"
    ),
    cost="one pass over base and sources",
    unsuited="dense task vectors, as of full fine-tuning: hardly an element is then changed by one source alone",
    merge="evomerge.elementwise.ram:merge_ram",
    plan="evomerge.elementwise.ram:plan_ram",
    shared=(_EPSILON,),
    needs=frozenset({"base"}),
    elementwise=True,
    mergekit=MergekitMethod(name="ram", base_model="base", parameters={"epsilon": "epsilon"}, semantics={}),
)

RAM_PLUS = replace(
    RAM,
    name="ram_plus",
    title="RAM+: RAM with more of what one source alone has changed, the more of its changes are shared",
    formula=(
        "a_i = 1 where |tau_i| > epsilon, else 0; c = sum_i a_i, by element\n"
        "rho_i = number of elements with a_i = 1 and c > 1, divided by max(number with a_i = 1 and c = 1, epsilon)\n"
        "s_i = 1 + r * min(rho_i, alpha)\n"
        "theta = theta_0 + sum_i a_i * tau_i / c where c > 1, s_i * tau_i where c = 1 and a_i = 1"
    ),
    cost="two passes over base and sources, of which the first is once per worker",
    unsuited="dense task vectors, as of full fine-tuning: hardly an element is then changed by one source alone",
    merge="evomerge.elementwise.ram:merge_ram_plus",
    plan="evomerge.elementwise.ram:plan_ram_plus",
    shared=(
        _EPSILON,
        Parameter(
            name="r",
            per_source=False,
            low=0.0,
            high=1.0,
            default=0.1,
            description="weight of the overlap; 0 is RAM",
            minimum=0.0,
        ),
        Parameter(
            name="alpha",
            per_source=False,
            low=0.0,
            high=1.0,
            default=0.2,
            description="largest overlap that counts",
            minimum=0.0,
        ),
    ),
    options=(
        Option(
            "overlap", ("global", "tensor"), "rho_i is counted over all mergeable tensors, or over each tensor alone"
        ),
    ),
    elementwise=False,
    mergekit=MergekitMethod(
        name="ramplus_tl",
        base_model="base",
        parameters={"epsilon": "epsilon", "r": "r", "alpha": "alpha"},
        semantics={"overlap": "tensor"},
    ),
)
