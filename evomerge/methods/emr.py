"""EMR-Merging: elect, mask and rescale."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, SourceOption

EMR = MethodInfo(
    name="emr",
    title="EMR: one elected task vector, masked and rescaled for one of the tasks; a model per task, not one for all",
    paper="EMR-Merging, arXiv 2405.17461",
    formula=(
        "elected = by element the sign of sum_i tau_i, with the largest |tau_i| of that sign\n"
        "mask_i = where tau_i has the elected sign; s_i = sum |tau_i| / sum |mask_i * elected|\n"
        "theta of task i = theta_0 + s_i * mask_i * elected"
    ),
    cost="two passes over base and sources for each task; the sources remain as a bit per element and a number each",
    unsuited="where one model has to serve all tasks: it is a model per task",
    merge="evomerge.merging.emr:merge_emr",
    options=(
        Option(
            "rescaler",
            ("flat_sum", "tensor_mean"),
            "what restores the magnitude of the task vector: sums over all elements, or sums of the means of tensors",
        ),
    ),
    source_options=(SourceOption("task", "the source whose task the merge is reconstructed for"),),
    needs=frozenset({"base"}),
)
