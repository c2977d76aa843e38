"""The live model of a training: it holds the merge while that learns, and a source while that teaches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from evomerge.elementwise.column_arithmetic import vector_factors, write_column_arithmetic
from evomerge.elementwise.column_linear import source_factors, write_column_linear
from evomerge.errors import InvalidInput
from evomerge.merging import RuleTensors, merge_rule
from evomerge.methods import method_info, resolve_options
from evomerge.native.weighted_vectors import write_weighted_sum
from evomerge.optimisation.batches import Batch
from evomerge.optimisation.coefficients import Coefficients
from evomerge.optimisation.gradients import sparse_embeddings, stream_gradients
from evomerge.recipe import Recipe, Rule
from evomerge.tensors.computed_tensors import is_computed
from evomerge.tensors.whole_embeddings import whole_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Factors = Callable[[RuleTensors, str, torch.Size], list[Tensor]]
_Write = Callable[[RuleTensors, Mapping[str, Tensor]], None]


class Student:
    """Writes merges into the live model, by the same operations as scoring and export, and runs it.

    Attributes:
        names: the floating-point tensors, which a merge consists of.
        forward_tokens, gradient_tokens: tokens read so far without and with gradients, padding excluded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        live: Mapping[str, Tensor],
        weights: Mapping[str, Mapping[str, Tensor]],
        recipe: Recipe,
    ) -> None:
        if recipe.layers:
            raise InvalidInput(
                "a training merges the layers of the base in their order, and this recipe has a path of layers; start "
                "from another merge"
            )
        if recipe.ingredients:
            raise InvalidInput(
                f"a training merges models, and this recipe merges {', '.join(recipe.ingredients)}, which are merges; "
                "start from `flattened(recipe)`"
            )
        if recipe.space == "core" and (rule := _no_sum(recipe)):
            raise InvalidInput(
                f"a training merges the weights themselves, and this recipe merges by {rule.method} in core space, "
                "which is another merge; start from a merge by task_arithmetic, or one without `space: core`"
            )
        self.live = live
        self.names = tuple(sorted(name for name, tensor in live.items() if tensor.is_floating_point()))
        self.forward_tokens = 0
        self.gradient_tokens = 0
        self._model = model
        self._weights = weights
        self._recipe = recipe
        self._cache: dict[Hashable, Any] = {}
        self._merge: Callable[[tuple[str, ...]], None] | None = None
        self._stale: set[str] = set()
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        keys = {id(tensor): key for key, tensor in model.state_dict(keep_vars=True).items()}
        self._keys = {name: keys[id(live[name])] for name in self.names if id(live[name]) in keys}

    @property
    def device(self) -> torch.device:
        return self.live[self.names[0]].device

    def set_average(self, sources: Sequence[str]) -> None:
        """Set the uniform average of some sources as the merge; the next forward pass writes it."""
        rule = Rule(
            tensors=self.names,
            method="linear",
            sources=tuple(sources),
            parameters={"weight": (1.0,) * len(sources)},
            options=resolve_options("linear", {}),
        )
        self.set_rules([rule])

    def set_rules(self, rules: Iterable[Rule]) -> None:
        """Set the merge of some rules, without files; the next forward pass writes their tensors."""
        by_name = {name: rule for rule in rules for name in rule.tensors}
        self._merge = partial(self._write_rules, by_name)
        self._stale |= set(by_name)

    def set_merge(self, coefficients: Coefficients, changed: Iterable[str] | None = None) -> None:
        """Set the merge of the coefficients; the next forward pass writes all tensors, or the changed ones."""
        self._merge = partial(self._write_coefficients, coefficients)
        self._stale |= set(self.names if changed is None else changed)

    def set_vectors(self, sources: Sequence[str], coefficients: Sequence[Mapping[str, Tensor]]) -> None:
        """Set the base plus weighted task vectors as the merge; the next forward pass writes the tensors with weights.

        Args:
            coefficients: of each source, by tensor name, as the method `column_arithmetic` takes them.
        """
        self._merge = partial(self._write_vectors, tuple(sources), coefficients)
        self._stale |= set(coefficients[0])

    def write(self) -> None:
        """Bring the live tensors up to date with the merge."""
        if self._merge is None or not self._stale:
            return
        with torch.no_grad():
            self._merge(tuple(name for name in self.names if name in self._stale))
        self._stale.clear()

    def tensors(self, rule: Rule, names: Sequence[str]) -> RuleTensors:
        """Some tensors of a rule without files."""
        return RuleTensors(
            names=tuple(names),
            base=self._weights[self._recipe.base.name],
            sources=[self._weights[source] for source in rule.sources],
            parameters=rule.parameters,
            options=rule.options,
            seed=self._recipe.seed,
            scope_names=self.names,
            cache=self._cache.setdefault(rule.sources, {}),
        )

    def _write_rules(self, rules: Mapping[str, Rule], names: Sequence[str]) -> None:
        dtype = getattr(torch, self._recipe.dtype)
        for name in names:
            for _, tensor in merge_rule(rules[name].method, self.tensors(rules[name], [name])):
                self.live[name].copy_(tensor.to(dtype))

    def _write_coefficients(self, coefficients: Coefficients, names: tuple[str, ...]) -> None:
        tensors = RuleTensors(
            names=names,
            base=self._weights[self._recipe.base.name],
            sources=[self._weights[source] for source in coefficients.sources],
            parameters={"coefficients": coefficients.by_source},
            options={"phi": coefficients.phi},
            seed=self._recipe.seed,
        )
        self._write_sums(tensors, None, source_factors, write_column_linear)

    def _write_vectors(
        self, sources: Sequence[str], coefficients: Sequence[Mapping[str, Tensor]], names: tuple[str, ...]
    ) -> None:
        tensors = RuleTensors(
            names=names,
            base=self._weights[self._recipe.base.name],
            sources=[self._weights[source] for source in sources],
            parameters={"weight": (1.0,) * len(sources), "coefficients": coefficients},
            options={},
            seed=self._recipe.seed,
        )
        self._write_sums(tensors, tensors.base, vector_factors, write_column_arithmetic)

    def _write_sums(
        self, tensors: RuleTensors, base: Mapping[str, Tensor] | None, factors: _Factors, write: _Write
    ) -> None:
        """Write weighted sums by compiled loops, or by `write` where they do not cover a tensor: to the same bits.

        A live tensor of another dtype than the recipe's, as one that the class keeps in float32, is rounded to the
        recipe's first, as in scoring and export.
        """
        dtype = getattr(torch, self._recipe.dtype)
        for name in tensors.names:
            live = self.live[name]
            target = live if live.dtype == dtype else torch.empty_like(live, dtype=dtype)
            given = torch.stack(factors(tensors, name, target.shape))
            origin = None if base is None else base[name]
            if not write_weighted_sum(target, origin, [source[name] for source in tensors.sources], given):
                write(replace(tensors, names=(name,)), {name: target})
            if target is not live:
                live.copy_(target)

    def logits(self, batch: Batch, *, gradients: bool = False) -> tuple[Tensor, Tensor]:
        """Run the merge: logits [B, K, V] of the K positions where anything counts, and the counted of them [B, K]."""
        self.write()
        self._count(batch, gradients)
        with torch.set_grad_enabled(gradients), whole_embeddings(self._model):
            return self._run(batch, None)

    def logits_of_source(self, source: str, batch: Batch) -> Tensor:
        """The logits [N, V] of a source at the counted positions of a batch.

        A source of the live dtype on the live model's device is run from its resident tensors; one of another dtype or
        form, or one that is streamed to the device, is written into the live model, so that no second copy of any
        weights is needed, and the merge is written anew afterwards.
        """
        self._count(batch, gradients=False)
        tensors = self._weights[source]
        with torch.no_grad():
            if self.runs_in_place(source):
                logits, counted = self._run(batch, {self._keys[name]: tensors[name] for name in self.names})
            else:
                for name in self.names:
                    self.live[name].copy_(tensors[name])
                self._stale = set(self.names)
                logits, counted = self._run(batch, None)
            return logits[counted]

    def runs_in_place(self, source: str) -> bool:
        """Whether the source can be run without being written into the live model or copied."""
        tensors = self._weights[source]
        return len(self._keys) == len(self.names) and all(
            not is_computed(tensors, name) and _alike(tensors[name], self.live[name]) for name in self.names
        )

    def _run(self, batch: Batch, tensors: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        arguments = {"input_ids": batch.tokens, "attention_mask": batch.present.long(), "use_cache": False}
        kept = batch.counted.any(0)
        counted = batch.counted
        if self._can_keep and not bool(kept.all()):
            arguments["logits_to_keep"] = kept.nonzero().squeeze(1)
            counted = counted[:, kept]
        output = (
            self._model(**arguments) if tensors is None else functional_call(self._model, dict(tensors), (), arguments)
        )
        return output.logits, counted

    @contextmanager
    def streamed_gradients(self, names: Iterable[str], take: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Let a backward pass inside hand over gradients as `stream_gradients` does, those of embeddings by rows."""
        with torch.enable_grad(), sparse_embeddings(self._model, self.live), stream_gradients(self.live, names, take):
            yield

    def _count(self, batch: Batch, gradients: bool) -> None:
        if gradients:
            self.gradient_tokens += batch.size
        else:
            self.forward_tokens += batch.size


def _alike(tensor: Tensor, live: Tensor) -> bool:
    """Whether a tensor can stand in for a live one as it is."""
    return tensor.dtype == live.dtype and tensor.device == live.device


def _no_sum(recipe: Recipe) -> Rule | None:
    """A rule that is no weighted sum of task vectors, which are the same in every space."""
    return next((rule for rule in recipe.rules if not method_info(rule.method).weighted_sum), None)
