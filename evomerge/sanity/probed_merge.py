"""The sanity probe of a merge in a bank of sources: what a worker does, and an export of what no worker has probed."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping

import torch

from evomerge.bank import WeightBank
from evomerge.bank.memory import available_memory
from evomerge.checkpoints.tokenizer import load_tokenizer
from evomerge.messages import in_bytes
from evomerge.recipe import Recipe
from evomerge.sanity.sanity_figures import SanityFigures
from evomerge.sanity.sanity_probe import SanityProbe

SHARE = 0.5  # of the free memory that the model of a probe beside an export may take


def probe_merge(
    bank: WeightBank, recipe: Recipe, probes: MutableMapping[int, SanityProbe], *, allow: Collection[str] = ()
) -> SanityFigures:
    """Materialise a merge and probe it.

    Args:
        probes: identity of a live model -> its probe, which is prepared with the weights of the base on first use.
        allow: permissions, as in a search.yaml.

    Raises:
        InvalidInput: the base has no tokenizer, or the model cannot run the requests.
        MergeError: the recipe has no merge, or the model's logits are not numbers.
    """
    live = id(bank.live_model(recipe.layers))
    if live not in probes:
        tokenizer = load_tokenizer(bank.base.ref, allow=allow)
        probes[live] = SanityProbe(bank.base_model(recipe.layers), tokenizer)
    bank.materialize(recipe)
    return probes[live].run()


def too_large(bank: WeightBank) -> str | None:
    """The reason why a merge cannot be loaded here to be probed; None where it can."""
    size = sum(entry.numel for entry in bank.base.catalogue.entries) * bank.dtype.itemsize
    free = torch.cuda.mem_get_info(bank.device)[0] if bank.device.type == "cuda" else available_memory()
    if size <= SHARE * free:
        return None
    return f"the model takes {in_bytes(size)}, and of {in_bytes(free)} of free memory here a probe uses {SHARE:.0%}"
