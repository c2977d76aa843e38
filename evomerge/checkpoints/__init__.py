"""Model directories: opening sources, checking that they can be merged, a live model to merge into."""

from evomerge.checkpoints.compatibility import check_compatible
from evomerge.checkpoints.digests import WeightsDiffer, differing, tensor_digest, tensor_digests, verify_digests
from evomerge.checkpoints.live import check_scorable, load_skeleton, meta_model, tensors_of
from evomerge.checkpoints.source import Source, open_source

__all__ = [
    "Source",
    "WeightsDiffer",
    "check_compatible",
    "check_scorable",
    "differing",
    "load_skeleton",
    "meta_model",
    "open_source",
    "tensor_digest",
    "tensor_digests",
    "tensors_of",
    "verify_digests",
]
