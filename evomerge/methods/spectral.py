"""TSV-M, Iso-C and WUDI: task vectors merged as matrices once, and a searched factor."""

from __future__ import annotations

from functools import partial

from evomerge.methods.info import MethodInfo, Parameter

_REST = (
    "\nsingular values that rounding in float32 explains are 0, and so are their vectors; those that storing in fewer"
    "\nbits explains too, if they are two thirds or more of a tau_i: that of an adapter merged into the weights"
    "\nembeddings, heads and tensors that are no matrices: M = mean_i tau_i"
)
_NARROW = "; of weights stored in bfloat16 or float16 also the eigenvalues of each task vector"
_LOSES = "on language models they mostly lose to task arithmetic"

_spectral = partial(
    MethodInfo,
    shared=(
        Parameter(
            name="lambda",
            per_source=False,
            low=0.1,
            high=2.0,
            default=1.0,
            description="factor of the merged task vector",
        ),
    ),
    needs=frozenset({"base"}),
    keeps_vector=True,
)

TSV_M = _spectral(
    name="tsv_m",
    title="TSV-M: the leading singular directions of every task vector, made orthogonal to each other",
    paper="Task singular vectors, arXiv 2412.00081",
    formula=(
        "theta = theta_0 + lambda * M; linear weights: tau_i = U_i S_i V_i', its k = min(rows, columns) / n leading\n"
        "M = U S V' with U and V the polar factors of [U_1 .. U_n] and [V_1 .. V_n], S = diag(S_1 .. S_n)" + _REST
    ),
    cost="one pass over the base; before it, once per worker, n + 2 decompositions of each linear weight" + _NARROW,
    evidence="no reliable gain (arXiv 2511.21437, four LLMs with 12 fine-tunes each)",
    unsuited=f"language models as a first choice: {_LOSES}; models too wide to decompose",
    merge="evomerge.spectral.task_matrices:merge_tsv_m",
)

ISO_C = _spectral(
    name="iso_c",
    title="Iso-C: the sum of the task vectors with all singular values equal",
    paper="No task left behind: isotropic merging, arXiv 2502.04959",
    formula=("theta = theta_0 + lambda * M; linear weights: sum_i tau_i = U S V'\nM = mean(S) * U V'" + _REST),
    cost="one pass over the base; before it, once per worker, one decomposition of each linear weight" + _NARROW,
    evidence="no reliable gain (arXiv 2511.21437, four LLMs with 12 fine-tunes each)",
    unsuited=f"language models as a first choice: {_LOSES}; sums of low rank, whose mean singular value is small",
    merge="evomerge.spectral.task_matrices:merge_iso_c",
)

WUDI = _spectral(
    name="wudi",
    title="WUDI: by linear weight what interferes least with every task vector, in closed form",
    paper="WUDI-Merging, arXiv 2503.08099, where its gradient is 0",
    formula=(
        "theta = theta_0 + lambda * M; linear weights [out, in]: G_i = tau_i' tau_i / |tau_i|^2\n"
        "M = (sum_i tau_i G_i) * pseudo-inverse(sum_i G_i)" + _REST
    ),
    cost="one pass over the base; before it, once per worker, a decomposition [in, in] of each linear weight" + _NARROW,
    unsuited="weights that are stored [in, out], as GPT-2's; models too wide to decompose",
    merge="evomerge.spectral.task_matrices:merge_wudi",
)
