"""Sources held once, and a live model whose weights are replaced in place without reading a file per candidate."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evomerge.artefacts.streamed_weights import spilled
from evomerge.bank.core_merges import CoreMerges
from evomerge.bank.device_kind import device_kind
from evomerge.bank.file_guard import FileGuard
from evomerge.bank.layer_pool import LayerPool
from evomerge.bank.memory import MemoryNeed, need_of_sources
from evomerge.bank.merge_memory import MergeMemory
from evomerge.bank.placement import Machine, Place, place_beside_others, place_sources, placed, placed_experts
from evomerge.bank.recipe_check import check_recipe
from evomerge.bank.recipe_tensors import RecipeTensors
from evomerge.bank.resident_merges import ResidentMerges
from evomerge.bank.shared_tensors import SharedTensors
from evomerge.bank.skeletons import Skeletons
from evomerge.catalogue.attention_heads import attention_heads
from evomerge.catalogue.layer_stack import mlp_outputs, renumbered, tensors_of_layer
from evomerge.checkpoints import Source, load_skeleton, tensor_digest
from evomerge.engine.live_state import LiveState
from evomerge.errors import MergeError
from evomerge.fitting.fitted_source import content_key
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import method_info
from evomerge.passes.fused_rule import FusedRule, SourceCache, fuse_rule
from evomerge.passes.kernels import DTYPES, Kernels
from evomerge.passes.table_store import TableStore
from evomerge.passes.threshold_tables import Contents, ThresholdTables
from evomerge.recipe import PathLayer, Recipe, Rule
from evomerge.tensors.rounding import check_finite, rounded_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WeightBank:
    """Base and experts, resident, and the live model that candidates are written into.

    What is scored (`materialize`) and what is exported (`merged`) have the same bits: a method that has a formula does
    the same operations compiled and eagerly, so that it does not matter when a kernel becomes available.
    """

    def __init__(
        self,
        base: Source,
        experts: Sequence[Source],
        *,
        dtype: torch.dtype,
        device: torch.device,
        files: Path | None = None,
        kernels: Kernels | None = None,
        store: TableStore | None = None,
        ingredients: int = 0,
        need: MemoryNeed | None = None,
        machine: Machine | None = None,
        shared: SharedTensors | None = None,
        one_merge: Path | None = None,
    ) -> None:
        """
        Args:
            one_merge: for a bank that makes one merge and no live model, a folder that ingredients are written to and
                mapped from. On a CPU it needs memory for neither. Nothing in the folder is deleted.
            store: keeps threshold tables on disk, by default in the user's cache.
            ingredients: number of merges that memory was planned for as sources of other merges. A recipe with more
                has them all while it is written; then those that were not used for longest are dropped.
            need: memory that was planned for; by default what the sources alone need.
            machine: of a worker, for which memory was planned; without one see `place_beside_others`.
            shared: what is made of the sources and kept in main memory, the workers of a machine have once in it.
        """
        self.base = base
        self.dtype = dtype
        self.device = device
        need = need or need_of_sources(base, experts, dtype, ingredients=ingredients)
        if machine is None:
            self.placement = place_beside_others(need, device)
        else:
            self.placement = place_sources(need, machine, shared=shared is not None)
        mapped = {name: base.tensors[name] for name in base.catalogue.names}
        held = placed(mapped, self.placement.place, device)
        self._weights = {base.ref.name: held, **placed_experts(experts, held, self.placement.place, device)}
        self._file_guard = FileGuard((base, *experts))
        self._fingerprints = {source.ref.name: source.ref.fingerprint for source in (base, *experts)}
        self._content_keys = {source.ref.name: content_key(source) for source in (base, *experts)}
        self._attention_heads = attention_heads(base.settings)
        self._mergeable = tuple(entry.name for entry in base.catalogue.mergeable)
        self._unchecked = {entry.name for entry in base.catalogue.mergeable}
        self._outside = tuple(entry.name for entry in base.catalogue.entries if entry.layer is None)
        self._pool = LayerPool(self._weights, dtype=dtype, device=device, shared=shared)
        self._skeletons: Skeletons | None = None
        self._tables: dict[tuple[str, ...], ThresholdTables] = {}
        self._store = store or TableStore()
        self._kernels = kernels or Kernels(device)
        self._caches: dict[tuple[str, ...], SourceCache] = defaultdict(SourceCache)
        self._model: PreTrainedModel | None = None
        self._state: LiveState | None = None
        self._live: Mapping[str, torch.Tensor] = {}
        self._written: dict[str, str] = {}
        self._recipe_tensors = RecipeTensors(files, device)
        self._one_merge = one_merge
        self._merge_memory = MergeMemory(
            self._base, self.placement.place, device, shared if self.placement.place is Place.MAPPED else None
        )
        self._merges = ResidentMerges(self._build, self._forget, planned=ingredients)
        self.core_merges = CoreMerges(self._weights, base.ref.name, self._mergeable)

    def materialize(self, recipe: Recipe) -> PreTrainedModel:
        """The live model with the recipe's weights. It is the same object every time: use it before the next call.

        Only tensors whose rule differs from the one that they were last written by are written again. A recipe with
        layers has a live model of its depth, with which it is the same: see `Skeletons`.

        Raises:
            MergeError: the recipe has no merge, or a merged tensor is not finite.
        """
        self._begin(recipe)
        self._check_copied(recipe)
        model = self._load_model()
        self._reset_state()
        for rule in recipe.rules:
            mark = _mark(rule, recipe, _contents(rule, recipe))
            stale = [name for name in rule.tensors if self._written.get(name) != mark]
            if stale:
                self._write(rule, recipe, mark)
        self._save_tables()
        foreign = set(self._written).difference(*(rule.tensors for rule in recipe.rules))
        if not recipe.layers:
            self._restore(foreign)
            return model
        self._restore(foreign.intersection(self._outside))  # the layers of this model are not those of the path
        return self._load_skeletons().follow(recipe.layers)

    def _check_copied(self, recipe: Recipe) -> None:
        """Refuse tensors that no rule names and that the scoring dtype cannot hold; each is looked at once."""
        copied = self._unchecked.intersection(self._outside) if recipe.layers else self._unchecked
        for name in copied.difference(*(rule.tensors for rule in recipe.rules)):
            rounded_copy(name, self._base[name], self.dtype)
            self._unchecked.discard(name)

    def base_model(self, layers: Sequence[PathLayer] = ()) -> PreTrainedModel:
        """The live model with the weights of the base, in the scoring dtype; for a path, with layers of the base in the
        place of its own. See `materialize`."""
        model = self._load_model()
        self._reset_state()
        if not layers:
            self._restore(set(self._written))
            return model
        self._restore(set(self._written).intersection(self._outside))
        return self._load_skeletons().reference([layer.layer for layer in layers])

    def live_model(self, layers: Sequence[PathLayer] = ()) -> PreTrainedModel:
        """The live model that a recipe with this path is materialised in, with whatever weights it holds now."""
        model = self._load_model()
        self._reset_state()
        return self._load_skeletons().model([layer.layer for layer in layers]) if layers else model

    def merged(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the model that the recipe describes, in its scoring dtype, one after another.

        Tensors that no rule names come from the base; integer tensors keep their dtype.
        """
        self._begin(recipe)
        yield from self._tensors(recipe)

    def _tensors(self, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        """`merged` in the dtype of the recipe, which may be an ingredient of another one."""
        dtype = DTYPES[recipe.dtype]
        named = {name for rule in recipe.rules for name in rule.tensors}
        for rule in recipe.rules:
            fused = self._fused(rule, recipe)
            if fused is not None:
                yield from fused.tensors()
            else:
                for name, tensor in self._merge(rule, recipe):
                    merged = check_finite(name, tensor.to(dtype))
                    del tensor
                    yield name, merged
                    del merged  # taken: gone before the next is made
        self._save_tables()
        for name in self._outside if recipe.layers else self.base.catalogue.names:
            if name not in named:
                yield name, rounded_copy(name, self._base[name], dtype)
        for place, layer in enumerate(recipe.layers):
            yield from self._layer(place, layer)

    def _build(self, ingredient: Recipe) -> Mapping[str, torch.Tensor]:
        if self._one_merge is None:
            return self._merge_memory.hold(ingredient, lambda: self._tensors(ingredient))
        written = spilled(self._one_merge, self._tensors(ingredient), self.base.catalogue, ingredient)
        return self._merge_memory.hold(ingredient, lambda: iter(written.items()))

    def _forget(self, digest: str) -> None:
        """Drop all that refers to the tensors of an ingredient."""
        self._merge_memory.drop(digest)
        for cached in (self._tables, self._caches):
            for key in [key for key in cached if digest in key]:
                del cached[key]

    def _layer(self, place: int, layer: PathLayer) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of one layer of a path."""
        scaled = mlp_outputs(self.base.catalogue, layer.layer) if layer.scale != 1 else ()
        for entry in tensors_of_layer(self.base.catalogue, layer.layer):
            if entry.name in scaled:
                tensor = self._pool.scaled(layer.source, entry.name, layer.scale)
            else:
                tensor = self._pool.rounded(layer.source, entry.name)
            yield renumbered(entry.name, place), tensor

    def live_digests(self, recipe: Recipe) -> dict[str, str]:
        """A digest per tensor of the live model that the recipe was, or is now, materialised in.

        They are those of `merged`: of the values in the scoring dtype, also where the live model keeps another one.
        """
        self.materialize(recipe)
        live: Mapping[str, torch.Tensor] = self._live
        if recipe.layers:
            live = {name: live[name] for name in self._outside} | dict(self._load_skeletons().tensors(recipe.layers))
        return {name: tensor_digest(_in_dtype(tensor, self.dtype)) for name, tensor in live.items()}

    @property
    def weights(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """Source name -> its resident tensors by name, base included. Nobody writes to them."""
        return self._weights

    @contextmanager
    def borrow(self) -> Iterator[tuple[PreTrainedModel, Mapping[str, torch.Tensor]]]:
        """The live model and its tensors by name, to train in: inside, anything may be written to them.

        Afterwards they need no gradients and hold none, and the next recipe is written completely.
        """
        model = self._load_model()
        self._reset_state()
        try:
            yield model, self._live
        finally:
            for parameter in model.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
            self._written = dict.fromkeys(self._live, "")

    def _load_model(self) -> PreTrainedModel:
        """The live model, loaded on first use."""
        if self._model is None:
            self._model, self._live = load_skeleton(self.base, dtype=self.dtype, device=self.device)
            self._state = LiveState(self._model)
        return self._model

    def _load_skeletons(self) -> Skeletons:
        """The live models of paths, with their first use."""
        if self._skeletons is None:
            self._skeletons = Skeletons(self.base, self._load_model(), self._pool, self._live)
        return self._skeletons

    def _reset_state(self) -> None:
        """Nothing that the candidate before has left in the model, beside its weights, reaches the next one."""
        if self._state is not None:
            self._state.restore()

    @property
    def device_kind(self) -> str:
        """The kind of device that decides the bits of merges."""
        return device_kind(self.device, streams=self.placement.streams)

    @property
    def table_bytes(self) -> int:
        """Bytes of the threshold tables built so far."""
        return sum(tables.nbytes for tables in self._tables.values())

    def _write(self, rule: Rule, recipe: Recipe, mark: str) -> None:
        for name in rule.tensors:
            self._written[name] = ""  # neither the old nor the new rule until the whole group is there
        self._merge_into(rule, recipe, self._live)
        self._written.update(dict.fromkeys(rule.tensors, mark))

    def _merge_into(self, rule: Rule, recipe: Recipe, outputs: Mapping[str, torch.Tensor]) -> None:
        fused = self._fused(rule, recipe)
        if fused is not None:
            fused.write(outputs)
            return
        for name, tensor in self._merge(rule, recipe):
            output = outputs[name]  # rounded as it is copied, where that needs no further copy
            output.copy_(tensor if output.dtype == self.dtype else tensor.to(self.dtype))
            check_finite(name, output)

    def _restore(self, names: set[str]) -> None:
        for name in names:
            self._live[name].copy_(_in_dtype(self._base[name], self.dtype))
            del self._written[name]

    @property
    def _base(self) -> Mapping[str, torch.Tensor]:
        return self._weights[self.base.ref.name]

    def _fused(self, rule: Rule, recipe: Recipe) -> FusedRule | None:
        """The rule compiled to one pass per tensor, where that can be had now."""
        if recipe.space == "core":
            return None
        return fuse_rule(
            rule.method,
            self.rule_tensors(rule, recipe),
            kernels=self._kernels,
            dtype=DTYPES[recipe.dtype],
            device=self.device,
            cache=self._caches[_contents(rule, recipe)],
        )

    def _merge(self, rule: Rule, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        tensors = self.rule_tensors(rule, recipe)
        if recipe.space == "core":
            return self.core_merges.merge(rule, tensors)
        return merge_rule(rule.method, replace(tensors, rounded=DTYPES[recipe.dtype]))

    def rule_tensors(self, rule: Rule, recipe: Recipe) -> RuleTensors:
        """The resident tensors of one rule of a recipe, as a method takes them.

        Raises:
            MergeError: an ingredient that the rule names cannot be built.
        """
        sources, contents = tuple(self._source(name, recipe) for name in rule.sources), _contents(rule, recipe)
        return RuleTensors(
            names=rule.tensors,
            base=self._weights[recipe.base.name],
            sources=sources,
            parameters={**rule.parameters, **self._recipe_tensors.parameters(rule, recipe)},
            options=rule.options,
            seed=recipe.seed,
            thresholds=self._thresholds(contents, sources),
            scope_names=self._mergeable,
            statistics=self._recipe_tensors.statistics(rule, recipe),
            attention_heads=self._attention_heads,
            once=self._one_merge is not None,
            cache=self._caches[contents].values.setdefault(tuple(sorted(recipe.files.items())), {}),
            prefix_cache=lambda sources: self._caches[contents[:sources]].values.setdefault("prefix", {}),
        )

    def _source(self, name: str, recipe: Recipe) -> Mapping[str, torch.Tensor]:
        """The resident tensors of a source or an ingredient of a recipe."""
        if name not in recipe.ingredients:
            return self._weights[name]
        try:
            return self._merges.tensors(recipe.ingredients[name])
        except MergeError as error:
            raise MergeError(f"ingredient {name!r}: {error}") from error

    def _thresholds(self, contents: tuple[str, ...], sources: Sequence[Mapping[str, torch.Tensor]]) -> ThresholdTables:
        if contents not in self._tables:
            self._tables[contents] = ThresholdTables(self._base, sources, self._stored_by(contents))
        return self._tables[contents]

    def _stored_by(self, contents: tuple[str, ...]) -> Contents | None:
        """Contents that tables are kept on disk by; None where that of a model is not known, and for ingredients, which
        other searches do not have."""
        names = [self._content_keys.get(name) for name in (self.base.ref.name, *contents)]
        return Contents.of(names, self._store)

    def _save_tables(self) -> None:
        for tables in self._tables.values():
            tables.save()

    def _begin(self, recipe: Recipe) -> None:
        """Check a recipe, and make room for its ingredients."""
        self._file_guard.check()
        check_recipe(recipe, fingerprints=self._fingerprints, dtype=self.dtype, catalogue=self.base.catalogue)
        self.core_merges.check(recipe)
        named = {name for rule in recipe.rules for name in rule.sources}
        self._merges.begin([made for name, made in recipe.ingredients.items() if name in named])


def _in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _contents(rule: Rule, recipe: Recipe) -> tuple[str, ...]:
    """Names of the sources of a rule, and digests of its ingredients: under one name recipes have different ones."""
    made = recipe.ingredients
    return tuple(made[name].digest if name in made else name for name in rule.sources)


def _mark(rule: Rule, recipe: Recipe, contents: tuple[str, ...]) -> str:
    """Identifies what a rule writes, given that sources and dtype are the bank's own."""
    content: tuple[object, ...] = (
        rule.method, contents, sorted(rule.parameters.items()), sorted(rule.options.items()), recipe.seed, recipe.space
    )  # fmt: skip
    if method_info(rule.method).roles:
        content += (sorted(recipe.files.items()),)
    return hashlib.sha256(repr((content, rule.tensors)).encode()).hexdigest()
