"""Inner products of the task vectors of all experts, tensor by tensor: lengths of what experts learned, and angles."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.errors import InvalidInput
from evomerge.tensors.inner_products import Products, inner_products
from evomerge.tensors.rule_tensors import RuleTensors, Tensors


def task_vector_products(base: Tensors, sources: Sequence[Tensors], names: Sequence[str]) -> dict[str, Products]:
    """[n, n], <tau_i, tau_j> of each tensor, in float64, with the same bits for any number of threads.

    Args:
        names: the tensors, each tied one once.

    Raises:
        InvalidInput: a task vector is not finite.
    """
    tensors = RuleTensors(names=tuple(names), base=base, sources=sources, parameters={}, options={})
    return {name: _of_tensor(tensors, name) for name in names}


def _of_tensor(tensors: RuleTensors, name: str) -> Products:
    products = inner_products(tensors, name, of="task_vectors")
    if not all(math.isfinite(value) for row in products for value in row):
        raise InvalidInput(f"a task vector has values that are not finite in tensor {name!r}; check the sources")
    return products
