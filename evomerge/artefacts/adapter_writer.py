"""Writing a merge of adapters as an adapter, in the files that PEFT writes: aside, then renamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from evomerge.adapters.adapted_tensors import LowRank
from evomerge.adapters.adapter_settings import SETTINGS_FILE
from evomerge.adapters.expert import WEIGHTS_FILE
from evomerge.adapters.stored_changes import PREFIX
from evomerge.artefacts.export_names import ADAPTER, CARD, RECIPE
from evomerge.artefacts.model_writer import is_export
from evomerge.artefacts.output_folder import check_replaceable
from evomerge.artefacts.tensor_file import write_tensors
from evomerge.artefacts.weight_files import as_json, write_text
from evomerge.checkpoints.live import meta_model
from evomerge.checkpoints.source import Source
from evomerge.conversion import fused_modules
from evomerge.errors import InvalidInput
from evomerge.messages import counted, some
from evomerge.recipe import Recipe
from evomerge.whole_files import folder_in_place


def write_adapter(out: Path, *, base: Source, products: Mapping[str, LowRank], recipe: Recipe, card: str) -> None:
    """Writes a folder that `PeftModel.from_pretrained` loads: a LoRA adapter of the base, its factors in float32.

    Args:
        out: the directory. It may be missing, empty, or an earlier export of an adapter, which is then replaced.
        products: tensor name -> what is added to the base's tensor.
        recipe: written as recipe.json.

    Raises:
        InvalidInput: `out` holds something else, there is no product, or one belongs to a module that PEFT has no LoRA
            for, or takes for another one.
    """
    if not products:
        raise InvalidInput("the merge changes no tensor of the base, so that there is no adapter to write")
    check_adapter_folder(out, base=base, recipe=recipe)
    tensors, ranks, transposed = _factors(base, products)
    with folder_in_place(out) as folder:
        write_tensors(folder / WEIGHTS_FILE, tensors)
        write_text(folder / SETTINGS_FILE, as_json(_settings(base, ranks, transposed)))
        write_text(folder / RECIPE, recipe.to_json() + "\n")
        write_text(folder / CARD, card)


def check_adapter_folder(out: Path, *, base: Source, recipe: Recipe) -> None:
    """Refuse what `write_adapter` refuses about its folder, before anything is made."""
    check_replaceable(
        out,
        marker=RECIPE,
        is_export=is_export,
        patterns=ADAPTER,
        sources=(base.directory, *(Path(ref.location) for ref in (recipe.base, *recipe.sources))),
    )


def largest_difference(written: Mapping[str, Tensor], merged: Iterable[tuple[str, Tensor]]) -> float:
    """The largest distance of the floating-point elements of a merge, made on any device, from those of an adapter over
    its base, rounded to the dtype of the merge."""
    on_host = ((name, tensor.cpu()) for name, tensor in merged if tensor.is_floating_point() and tensor.numel())
    return max(
        float((written[name].to(tensor.dtype).double() - tensor.double()).abs().max()) for name, tensor in on_host
    )


def _factors(base: Source, products: Mapping[str, LowRank]) -> tuple[dict[str, Tensor], dict[str, int], bool]:
    """The tensors of the file, module -> rank, and whether weights are stored as [inputs, outputs]."""
    model = meta_model(base)
    _check_kept(products, base, fused_modules(model))
    tensors, ranks, transposed = {}, {}, False
    for name, product in products.items():
        module, _, last = base.live_names.get(name, "").rpartition(".")
        kind = type(model.get_submodule(module)) if last == "weight" else None
        left, right = product.left.float() * product.scale, product.right.float()
        if kind is None or not issubclass(kind, torch.nn.Linear | torch.nn.Embedding | Conv1D):
            raise InvalidInput(
                f"the merge changes {name}, which is no weight of a linear layer or an embedding; PEFT has no LoRA for "
                "it: export the merge as a model"
            )
        embedding, suffix = ("embedding_", "") if issubclass(kind, torch.nn.Embedding) else ("", ".weight")
        if not issubclass(kind, torch.nn.Linear):
            left, right = right.T, left.T
        transposed = transposed or issubclass(kind, Conv1D)
        for letter, factor in (("A", right), ("B", left)):
            tensors[f"{PREFIX}{module}.lora_{embedding}{letter}{suffix}"] = factor.detach().cpu().contiguous()
        ranks[module] = product.rank
    return tensors, ranks, transposed


def _check_kept(products: Mapping[str, LowRank], base: Source, fused: Collection[str]) -> None:
    """Refuse modules that PEFT would not load as written, but as parts of the fused experts of the base."""
    places = {name: base.live_names.get(name, "").removesuffix(".weight") for name in products}
    if taken := [name for name, place in places.items() if place.rpartition(".")[2] in fused]:
        raise InvalidInput(
            f"the merge changes {counted(len(taken), 'tensor')} whose modules have the name of parts of experts "
            f"({some(taken)}); in a model of the type {base.settings['model_type']} PEFT adapts the fused experts "
            "instead of them: export the merge as a model"
        )


def _settings(base: Source, ranks: Mapping[str, int], transposed: bool) -> dict[str, Any]:
    """The adapter_config.json: alpha is the rank, so that products are scaled by 1."""
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    others = {module: each for module, each in ranks.items() if each != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.hub_id,
        "revision": base.ref.revision if base.hub_id is not None else None,  # of the base: PEFT loads it by both
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
