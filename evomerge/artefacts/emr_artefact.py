"""The artefact of EMR-Merging (arXiv 2405.17461): one elected vector, and for each model a mask and a rescaler.

    emr.json                  base, sources, tasks, rescalers, digests, and the names of the tensors kept from the base
    elected/                  safetensors: base + elected vector, in the dtype of the models, so that nothing is rounded
    masks/MODEL/              safetensors: of each tensor one bit per element, as uint8 [ceil(elements / 8)]
    README.md

With the base it rebuilds each model bit for bit: (elected - base) * mask * rescaler + base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from evomerge.artefacts.export_names import CARD, ELECTED, EMR, MASKS, SEVERAL
from evomerge.artefacts.output_folder import check_replaceable
from evomerge.artefacts.weight_files import as_json, write_text, write_weights
from evomerge.checkpoints.digests import WeightsDiffer, differing, tensor_digest, weights_digest
from evomerge.checkpoints.json_files import read_object
from evomerge.checkpoints.safetensors_files import SafetensorsTensors, is_file_name, read_headers
from evomerge.errors import InvalidInput, unknown_name
from evomerge.merging.emr import elected_weights, mask_of, reconstruction, rescaler_of
from evomerge.recipe import ModelRef, RecipeSet
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.whole_files import folder_in_place

__all__ = ["EmrArtefact", "EmrModel", "read_emr"]

SCHEMA: Final = 1
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BITS: Final = "element k of a tensor in row-major order is bit k % 8, from the least significant, of byte k // 8"
FORMULA: Final = (
    "weights = (elected - base) * mask * rescaler + base, from the left in float64, rounded to float32 (float64 where "
    "elected is) and then to dtype; of a single source: elected; tensors that are not in elected are those of the base"
)


@dataclass(frozen=True, kw_only=True)
class EmrModel:
    """One of the models of an artefact.

    Attributes:
        rescaler: s_i.
        tasks: of the evaluator, that are given to it.
        recipe: digest of its recipe.
        digest: of its weights, see `weights_digest`.
    """

    rescaler: float
    tasks: tuple[str, ...]
    recipe: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class EmrArtefact:
    """An artefact that was read. Its tensors are read when they are asked for.

    Attributes:
        base: the model that it is added to.
        sources: the experts that were merged, in order.
        models: source name -> its model.
        dtype: of the rebuilt floating-point tensors.
        digest: of the set of recipes.
        elected: tensor name -> base + elected vector.
        packed: source name -> tensor name -> its mask as bytes.
        kept: names of the tensors that every model has from the base; None, of earlier versions: all others of it.
    """

    base: ModelRef
    sources: tuple[ModelRef, ...]
    models: Mapping[str, EmrModel]
    dtype: torch.dtype
    digest: str
    elected: Mapping[str, Tensor]
    packed: Mapping[str, Mapping[str, Tensor]]
    kept: tuple[str, ...] | None = None

    def elected_vector(self, name: str, base: Tensor) -> Tensor:
        """uni of one tensor, in float64 and new memory.

        Args:
            base: the base's tensor of that name.
        """
        elected = self.elected[name]
        if base.shape != elected.shape:
            raise InvalidInput(
                f"{name!r} has the shape {tuple(base.shape)} in the base, but {tuple(elected.shape)} in the artefact; "
                f"its base is {self.base.location} ({self.base.fingerprint})"
            )
        return elected.double() - base.detach().to(elected.device).double()

    def mask(self, model: str, name: str) -> Tensor:
        """M_i of one tensor, boolean and of the tensor's shape."""
        return unpack_mask(self._packed(model)[name], tuple(self.elected[name].shape))

    def rebuild(self, model: str, base: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of a model as it was scored, one after the other: those that were merged, then the base's.

        Args:
            model: name of its source.
            base: the tensors of the base by name; further ones, which no model has, are left out.

        Raises:
            InvalidInput: there is no such model, or the base has other names or shapes. After the last tensor also
                where they are not those that were scored: the base, or a file, is another one.
        """
        digests: dict[str, str] = {}
        for name, tensor in self.unverified(model, base):
            digests[name] = tensor_digest(tensor)
            yield name, tensor
        if weights_digest(digests) != self.models[model].digest:
            raise InvalidInput(
                f"model {model!r} is not rebuilt as it was scored: the base has to be {self.base.location} "
                f"({self.base.fingerprint}), and no file may have changed"
            )

    def unverified(self, model: str, base: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """As `rebuild`, without a comparison at the end."""
        self._packed(model)
        kept = [name for name in base if name not in self.elected] if self.kept is None else self.kept
        if missing := sorted({*self.elected, *kept} - set(base)):
            raise InvalidInput(f"the base has no tensor {missing[0]!r}; the artefact's is {self.base.location}")
        for name, elected in self.elected.items():
            yield name, self._rebuilt(model, name, elected, base[name]).to(self.dtype)
        for name in kept:
            yield name, base[name].to(self.dtype) if base[name].is_floating_point() else base[name]

    def _rebuilt(self, model: str, name: str, elected: Tensor, base: Tensor) -> Tensor:
        vector = self.elected_vector(name, base)
        if len(self.sources) == 1:
            return elected
        weights = reconstruction(
            base.detach().to(elected.device), vector, self.mask(model, name), self.models[model].rescaler
        )
        return weights if elected.dtype == torch.float64 else weights.float()

    def _packed(self, model: str) -> Mapping[str, Tensor]:
        if model not in self.models:
            raise unknown_name("model of the EMR artefact", model, self.models)
        return self.packed[model]


def read_emr(folder: Path) -> EmrArtefact:
    """The artefact in a folder.

    Raises:
        InvalidInput: it is none, is of another schema, or its files do not belong together.
    """
    document = read_object(folder / EMR)
    what = f"{folder / EMR} is not one that `evomerge export` writes"
    if document.get("schema") != SCHEMA:
        raise InvalidInput(f"{folder / EMR} has schema {document.get('schema')!r}; this version reads {SCHEMA}")
    if document.get("dtype") not in DTYPES or not all(map(is_file_name, document.get("models", ()))):
        raise InvalidInput(f"{what}: dtype {document.get('dtype')!r}, models {list(document.get('models', ()))}")
    try:
        models = {
            name: EmrModel(**{**content, "tasks": tuple(content["tasks"])})
            for name, content in document["models"].items()
        }
        artefact = EmrArtefact(
            base=ModelRef(**document["base"]),
            sources=tuple(ModelRef(**source) for source in document["sources"]),
            models=models,
            dtype=DTYPES[document["dtype"]],
            digest=document["digest"],
            elected=SafetensorsTensors(read_headers(folder / ELECTED)),
            packed={name: SafetensorsTensors(read_headers(folder / MASKS / name)) for name in models},
            kept=tuple(map(str, document["kept"])) if "kept" in document else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"{what}: {error}") from error
    for name, packed in artefact.packed.items():
        if set(packed) != set(artefact.elected):
            raise InvalidInput(f"{folder / MASKS / name} has masks of other tensors than {folder / ELECTED}")
    return artefact


def write_emr(
    out: Path,
    recipes: RecipeSet,
    tensors: RuleTensors,
    *,
    base: Mapping[str, Tensor],
    scored: Mapping[str, Mapping[str, str]],
    card: str,
    read: Iterable[Path],
) -> None:
    """Write the artefact of a set of EMR recipes, after it was read back and has rebuilt every model bit for bit.

    Args:
        out: the folder. It may be missing, empty, or an earlier artefact, which is then replaced.
        tensors: of the rule that all recipes of the set have.
        base: all tensors of the base.
        scored: model -> digest of each of its tensors, as it was scored.
        card: the README.
        read: directories of base and sources, which are not replaced.

    Raises:
        InvalidInput: `out` holds something else than an earlier artefact.
        WeightsDiffer: a model is not rebuilt as it was scored.
    """
    check_emr_folder(out, read)
    with folder_in_place(out) as folder:
        (folder / ELECTED).mkdir()
        write_weights(folder / ELECTED, ((name, elected_weights(tensors, name)) for name in tensors.names))
        for model in recipes.recipes:
            (folder / MASKS / model).mkdir(parents=True)
            write_weights(folder / MASKS / model, _masks(recipes, model, tensors))
        write_text(folder / CARD, card)
        write_text(folder / EMR, as_json(_document(recipes, tensors, scored)))
        artefact = read_emr(folder)
        for model in artefact.models:
            actual = {name: tensor_digest(tensor) for name, tensor in artefact.unverified(model, base)}
            if names := differing(scored[model], actual):
                raise WeightsDiffer(list(names), len(actual))


def check_emr_folder(out: Path, read: Iterable[Path]) -> None:
    """Refuse what `write_emr` refuses about its folder, before anything is made."""
    check_replaceable(out, marker=EMR, is_export=_is_artefact, patterns=SEVERAL, sources=read)


def pack_mask(mask: Tensor) -> Tensor:
    """A boolean tensor as bytes, see `BITS`: uint8 [ceil(elements / 8)]."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy(), bitorder="little"))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of that shape that `pack_mask` packed."""
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != torch.uint8 or packed.shape != (-(-count // 8),):
        raise InvalidInput(
            f"a mask of {count:,} elements is {-(-count // 8):,} bytes (uint8), but got {packed.dtype} of shape "
            f"{tuple(packed.shape)}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits).bool().reshape(shape)


def position_of(recipes: RecipeSet, model: str) -> int:
    """Position of a model's source among the sources: the option `task` of its recipe."""
    return int(recipes.recipes[model].rules[0].options["task"])


def _masks(recipes: RecipeSet, model: str, tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    task = position_of(recipes, model)
    return ((name, pack_mask(mask_of(tensors, name, task))) for name in tensors.names)


def _document(recipes: RecipeSet, tensors: RuleTensors, scored: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    first = next(iter(recipes.recipes.values()))
    models = {
        name: EmrModel(
            rescaler=rescaler_of(tensors, position_of(recipes, name)),
            tasks=tuple(task for task, model in recipes.tasks.items() if model == name),
            recipe=recipe.digest,
            digest=weights_digest(scored[name]),
        )
        for name, recipe in recipes.recipes.items()
    }
    return {
        "schema": SCHEMA,
        "digest": recipes.digest,
        "formula": FORMULA,
        "bits": BITS,
        "dtype": first.dtype,
        "rule": tensors.options["rescaler"],
        "base": first.base.content(),
        "sources": [source.content() for source in first.sources],
        "models": {name: asdict(model) for name, model in models.items()},
        "kept": sorted(set(next(iter(scored.values()))) - set(tensors.names)),
    }


def _is_artefact(folder: Path) -> bool:
    try:
        return bool(read_object(folder / EMR).get("schema"))
    except InvalidInput:
        return False
