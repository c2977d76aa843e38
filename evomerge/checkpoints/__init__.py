"""Model directories: opening sources, checking that they can be merged, a live model to merge into, exports."""

from evomerge.checkpoints.compatibility import check_compatible
from evomerge.checkpoints.digests import WeightsDiffer, differing, tensor_digest, tensor_digests, verify_digests
from evomerge.checkpoints.live import check_scorable, load_skeleton, meta_model
from evomerge.checkpoints.model_card import Parent, license_warnings, model_card, models_card
from evomerge.checkpoints.model_writer import write_model
from evomerge.checkpoints.source import Source, open_source

__all__ = [
    "Parent",
    "Source",
    "WeightsDiffer",
    "check_compatible",
    "check_scorable",
    "differing",
    "license_warnings",
    "load_skeleton",
    "meta_model",
    "model_card",
    "models_card",
    "open_source",
    "tensor_digest",
    "tensor_digests",
    "verify_digests",
    "write_model",
]
