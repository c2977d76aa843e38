"""Model Stock: the mean task vector, shortened by the angles between the task vectors."""

from __future__ import annotations

from evomerge.methods.info import MergekitMethod, MethodInfo, Option

MODEL_STOCK = MethodInfo(
    name="model_stock",
    title="Model Stock: the mean of the sources, moved towards the base the further the less they agree",
    paper="Model Stock: all we need is just a few fine-tuned models, arXiv 2403.19522",
    formula=(
        "theta = theta_0 + t * mean_i tau_i, with t = n cos / (1 + (n - 1) cos) for each tensor\n"
        "cos: the mean cosine between two task vectors of the n sources, at least 0\n"
        "with short: clamp, the product of the lengths in a cosine is at least 1e-6\n"
        "it has no number to search; it takes two sources or more (of one alone t is 1)"
    ),
    cost="one pass over base and sources, and one for the angles, by tensor once per worker",
    evidence="no reliable gain (arXiv 2511.21437, four LLMs with 12 fine-tunes each)",
    unsuited="experts of different skills: the smaller their cosines, the nearer it is to the base",
    merge="evomerge.merging.model_stock:merge_model_stock",
    plan="evomerge.merging.model_stock:plan_model_stock",
    options=(
        Option(
            "pair_mean",
            ("cosines", "angles"),
            "what is averaged over pairs of sources: the cosines between their task vectors, or the angles",
        ),
        Option(
            "negative",
            ("clip", "raw"),
            "a negative mean cosine counts as 0, or as it is: the merge may then be beyond the base, or far out",
        ),
        Option(
            "short",
            ("exact", "clamp"),
            "the product of the lengths of two task vectors, by which their inner product is divided, as it is, or at "
            "least 1e-6: shorter ones, as of rows of ordinary fine-tunes, then count as less alike than they are",
            late=True,
        ),
        Option(
            "opposite",
            ("reject", "base"),
            "task vectors that cancel exactly (cos = -1 / (n - 1), for which there is no t) are refused, or leave the "
            "base; of effect with negative: raw",
            late=True,
        ),
        Option("filter_wise", (False, True), "each row has a t of its own, instead of each tensor"),
    ),
    needs=frozenset({"base"}),
    mergekit=MergekitMethod(
        name="model_stock",
        base_model="base",
        parameters={},
        switches={"filter_wise": ("filter_wise", False)},
        semantics={"pair_mean": "cosines", "negative": "raw", "short": "clamp", "opposite": "base"},
        expressed={"filter_wise": (False, True)},
    ),
)
