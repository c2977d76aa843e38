"""EMR-Merging: elect, mask and rescale."""

from __future__ import annotations

from evomerge.methods.info import MethodInfo, Option, SourceOption

EMR = MethodInfo(
    name="emr",
    title="EMR: one elected task vector, masked and rescaled for one of the tasks; a model per task, not one for all",
    paper="EMR-Merging, arXiv 2405.17461",
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
