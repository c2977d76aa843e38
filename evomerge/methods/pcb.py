"""PCB-Merging: parameters compete within a task vector and between task vectors."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, Parameter

PCB = MethodInfo(
    name="pcb",
    title="PCB: keep what wins the competition within and between task vectors, weighted by its score",
    paper="Parameter competition balancing for model merging (PCB-Merging), arXiv 2410.02396",
    formula=(
        "A_i = |tau_i| without its extremes; mm(x) = (x - min x) / (max x - min x) over the whole model\n"
        "b_i = exp(n * mm(A_i)^2) * tanh(tau_i * sum_j tau_j)\n"
        "S_i = mm(b_i), where all but the share density of the largest b_i are lowest\n"
        "theta = theta_0 + sum_i weight_i * S_i * sign(tau_i) * A_i / sum_i S_i"
    ),
    cost="one pass over base and sources; order statistics of all scores once per worker and density",
    evidence="as task arithmetic on multimodal LoRA fine-tunes (at second hand)",
    unsuited="searches over its density: each value costs quantiles of the whole model",
    merge="evomerge.elementwise.pcb:merge_pcb",
    plan="evomerge.elementwise.pcb:plan_pcb",
    per_source=(
        Parameter(
            name="weight",
            per_source=True,
            low=0.5,
            high=3.0,
            default=1.0,
            description="factor of each balanced task vector",
        ),
    ),
    shared=(
        Parameter(
            name="density",
            per_source=False,
            low=0.05,
            high=0.2,
            default=0.1,
            description="share of each task vector that competes, highest scores first; a worker measures the scores "
            "once for each density, so a search should have few",
            minimum=0.0,
            maximum=1.0,
            fixed=True,
        ),
    ),
    options=(
        Option(
            "variant",
            ("main", "vision_es", "nlp", "vision"),
            "four definitions of the authors. main and nlp: tanh of a task vector times the sum of all, the extreme "
            "1e-4 and 1e-2 clipped; vision: the sum of scaled vectors; vision_es: the sum of tanh of scaled products",
        ),
    ),
    needs=frozenset({"base"}),
)
