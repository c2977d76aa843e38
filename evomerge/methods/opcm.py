"""OPCM: continual merging by orthogonal projection."""

from __future__ import annotations

import math

from evomerge.methods.info import MethodInfo, Option, Parameter

OPCM = MethodInfo(
    name="opcm",
    title="Models in order of arrival, each projected to directions that the merge before does not use",
    paper="arXiv 2501.09522",
    formula=(
        "M_1 = tau_1; then for each further source, linear weights: U, s, V = SVD of M\n"
        "P = U' tau V, with 0 on the diagonal where s > 0 and in the first r x r block; "
        "r directions hold the share alpha of s\n"
        "M = (factor * M + U P V') rescaled to the mean norm of the task vectors so far\n"
        "other tensors: tau itself in place of U P V'; theta = theta_0 + M"
    ),
    cost="one full SVD per linear weight and source but the last, those of the first once per worker: "
    "O(m n min(m, n)), 0.3 s for 1024 x 1024 on a CPU",
    evidence="weak on continual benchmarks of LoRA fine-tunes (at second hand)",
    unsuited="models that are all there at once: the order then decides without need",
    merge="evomerge.merging.opcm:merge_opcm",
    shared=(
        Parameter(
            name="alpha",
            per_source=False,
            low=0.0,
            high=0.95,
            default=0.5,
            description="share of the singular values whose subspace is closed to the next model; below 1",
            minimum=0.0,
            maximum=math.nextafter(1.0, 0.0),
        ),
    ),
    options=(
        Option("zero_diagonal", (True, False), "remove what lies along the singular directions themselves, too"),
        Option(
            "split_rank", ("zero_based", "doc"), "index of the first share above alpha, or one direction more than that"
        ),
        Option("lm_head", ("other", "projected"), "add the head as it is, or project it like a linear weight"),
        Option("norm_tensors", ("all", "parameters"), "norms with floating-point buffers, or without them"),
    ),
    needs=frozenset({"base"}),
    arrival=True,
)
