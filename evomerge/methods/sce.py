"""SCE: select, calculate, erase."""

from __future__ import annotations

from evomerge.methods.breadcrumbs import KEPT_RULE
from evomerge.methods.info import MergekitMethod, MethodInfo, Option, Parameter

SCE = MethodInfo(
    name="sce",
    title="SCE: where task vectors differ most, those of the elected sign, weighted by their energy",
    paper="FuseChat, arXiv 2408.07990, as mergekit's documentation has it",
    formula=(
        "select: by tensor the share select_topk of largest variance over the sources, of those that are not 0\n"
        "at least one element, and all where no variance is above 0; with kept_rule: exact neither\n"
        "calculate: c_i = sum tau_i^2 / sum_k sum tau_k^2, over the selected elements of the tensor\n"
        "with small_energy: equal, c_i = 1 / n where sum_k sum tau_k^2 is below 1e-6 times the elements of the tensor\n"
        "erase: e_i = 1 where tau_i has the sign of sum_k tau_k, else 0\n"
        "theta = theta_0 + sum_i c_i * e_i * tau_i / sum_i c_i * e_i, by element, 0 where nothing is left"
    ),
    cost="one pass over base and sources; elements are put into bins by variance once per worker",
    evidence="made for the chat LLMs of FuseChat",
    unsuited="experts that should weigh differently: it leaves no weight to choose",
    merge="evomerge.elementwise.sce:merge_sce",
    plan="evomerge.elementwise.sce:plan_sce",
    shared=(
        Parameter(
            name="select_topk",
            per_source=False,
            low=0.05,
            high=1.0,
            default=1.0,
            description="share of the elements that is selected by variance; 1 selects all of them",
            minimum=0.0,
            maximum=1.0,
        ),
    ),
    options=(
        KEPT_RULE,
        Option(
            "zero_sum",
            ("erase", "plus"),
            "what is kept of task vectors whose selected elements sum to exactly zero: nothing, or the positive ones",
            late=True,
        ),
        Option(
            "small_energy",
            ("shares", "equal"),
            "c_i of a tensor where the mean squares of the task vectors (0 where not selected) have a sum below 1e-6, "
            "as those of ordinary fine-tunes: the shares of their energy as everywhere, or 1 / n for all n sources",
            late=True,
        ),
    ),
    needs=frozenset({"base"}),
    keeps_bins=True,
    mergekit=MergekitMethod(
        name="sce",
        base_model="base",
        parameters={"select_topk": "select_topk"},
        semantics={"kept_rule": "exact", "zero_sum": "plus", "small_energy": "equal"},
    ),
)
