"""Grams of layer inputs: second moments of what a model feeds into each linear layer (RegMean, arXiv 2212.09849)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from evomerge.errors import InvalidInput
from evomerge.statistics.forward import Inputs, evaluation_mode, run

_LINEAR = (torch.nn.Linear, Conv1D)


def input_grams(
    model: torch.nn.Module, batches: Iterable[tuple[Inputs, Tensor | None]], *, constant: bool = False
) -> dict[str, Tensor]:
    """G = X'X / N of every linear layer, with X [N, in] its inputs at all counted positions of all batches.

    The model runs in evaluation mode without gradients and is left as it was. Layers that are not called have no Gram:
    a module may hand their weights to a function of its own (mixtures of experts do).

    Args:
        model: any module with `torch.nn.Linear` layers or GPT-2's `Conv1D`.
        batches: (inputs, mask). Inputs are the model's argument, a tensor or, by name, several; the mask is None
            (everything counts) or [B, L], true or 1 where a position counts. A layer behind a pooling, whose inputs are
            [B, in], counts the rows in which some position does.
        constant: append 1 to the inputs of layers with a bias: their Grams are [in + 1, in + 1], for `bias: joint`.

    Returns:
        Name of the layer's weight -> [in, in], in the dtype of the inputs and at least float32.

    Raises:
        InvalidInput: no batches, nothing that counts, a mask that does not fit, or inputs that are not finite.
    """
    sums = GramSums(model, constant=constant)
    number = 0
    for number, batch in enumerate(batches, start=1):
        if not isinstance(batch, Sequence) or len(batch) != 2:
            raise InvalidInput(f"batch {number - 1} must be (inputs, mask), but is {type(batch).__name__}")
        sums.add(*batch, what=f"batch {number - 1}")
    if not number:
        raise InvalidInput("Grams are means over inputs, but there are no batches; give at least one")
    return sums.means()


class GramSums:
    """X'X in float64 and the number of rows of X, by name of the weight: what has been added so far can be stored.

    Attributes:
        tensors: X'X.
        counts: rows of X, and the dtype of the result.
    """

    def __init__(self, model: torch.nn.Module, *, constant: bool = False) -> None:
        self._model = model
        self._layers = linear_layers(model)
        self._constant = constant
        self.tensors: dict[str, Tensor] = {}
        self.counts: dict[str, tuple[int, str]] = {}
        self._batch = ""
        self._counted: Tensor | None = None

    def add(self, inputs: Inputs, mask: Tensor | None, what: str) -> None:
        """Run the model on a batch. See `input_grams`; `what` names the batch in errors."""
        self._begin(inputs, mask, what)
        with evaluation_mode(self._model), torch.no_grad(), _hooks(self._layers, self._add):
            run(self._model, inputs, what)

    def means(self) -> dict[str, Tensor]:
        """Name of the weight -> X'X / N. The sums are used up, so that not all of both are in memory.

        Raises:
            InvalidInput: a layer at whose inputs nothing counts, or that are not finite; or no layer was called.
        """
        found = {}
        for name in self._layers:
            if name not in self.tensors:
                continue
            rows, dtype = self.counts[name]
            if not rows:
                raise InvalidInput(f"no position counts in the inputs of {name!r}; mark some in the masks")
            mean = (self.tensors.pop(name) / rows).to(getattr(torch, dtype))
            if not bool(torch.isfinite(mean).all()):
                raise InvalidInput(f"the inputs of {name!r} are not finite; run the model in a wider dtype")
            found[name] = mean
        if not found:
            raise InvalidInput("the model called none of its linear layers, so that there are no Grams")
        return found

    def _begin(self, inputs: Inputs, mask: Tensor | None, what: str) -> None:
        self._batch, self._counted = what, None
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise InvalidInput(f"the mask of {what} must be a tensor [texts, positions], or None")
        if isinstance(inputs, Tensor) and inputs.shape[:2] != mask.shape:
            raise InvalidInput(
                f"the mask of {what} has the shape {list(mask.shape)}, but its inputs {list(inputs.shape)}"
            )
        self._counted = mask.bool()

    def _add(self, name: str, layer: torch.nn.Module, inputs: Tensor) -> None:
        rows = self._selected(name, inputs).double()
        if self._constant and layer.bias is not None:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        product = rows.T @ rows
        if name in self.tensors:
            self.tensors[name] += product
        else:
            self.tensors[name] = product
        dtype = str(torch.promote_types(inputs.dtype, torch.float32)).removeprefix("torch.")
        self.counts[name] = (self.counts.get(name, (0, ""))[0] + len(rows), dtype)

    def _selected(self, name: str, inputs: Tensor) -> Tensor:
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if self._counted is None:
            return rows
        counted = self._counted.to(rows.device)
        if len(rows) == counted.numel():
            return rows[counted.reshape(-1)]
        if len(rows) == len(counted):
            return rows[counted.any(1)]
        raise InvalidInput(
            f"the inputs of {name!r} have the shape {list(inputs.shape)}, which the mask of {self._batch}, "
            f"{list(counted.shape)}, does not fit; give None, where everything counts"
        )


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Name of the weight -> linear layer, of all that have Grams.

    Raises:
        InvalidInput: there are none.
    """
    layers = {f"{name}.weight" if name else "weight": module for name, module in model.named_modules() if _is(module)}
    if not layers:
        raise InvalidInput("the model has no linear layers, so that there are no Grams to take")
    return layers


def inputs_of(layer: torch.nn.Module) -> int:
    """The number of inputs of a linear layer."""
    rows, columns = layer.get_parameter("weight").shape
    return rows if isinstance(layer, Conv1D) else columns


def _is(module: torch.nn.Module) -> bool:
    return isinstance(module, _LINEAR)


@contextmanager
def _hooks(layers: dict[str, torch.nn.Module], take: Callable[[str, torch.nn.Module, Tensor], None]) -> Iterator[None]:
    """Inside, `take` gets the input of each layer whenever it is called."""

    def hook_of(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda module, given, named: take(name, module, [*given, *named.values()][0])

    handles = [layer.register_forward_pre_hook(hook_of(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
