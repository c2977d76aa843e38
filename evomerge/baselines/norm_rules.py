"""Baselines whose weights follow from lengths and angles of the task vectors: no data, no training, no search.

Each is task arithmetic in the end: its recipe needs no file, and another search may start from its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

from evomerge.baselines.baseline_plans import (
    BaselinePlan,
    Choice,
    Ingredients,
    ProductsRequest,
    ProductsResult,
    Step,
    StepResult,
)
from evomerge.baselines.info import ModelStockSettings
from evomerge.documents import validate
from evomerge.errors import InvalidInput
from evomerge.jobs import Products
from evomerge.merging import model_stock as model_stock_merges
from evomerge.spec import BaselineSpec


def metagpt(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """MetaGPT (arXiv 2406.11385): task arithmetic with weights in the ratio of the squared lengths."""
    return (yield from _by_length(given, metagpt_weights))


def nan(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """NAN (arXiv 2505.16148): weights in the ratio of the inverse lengths."""
    return (yield from _by_length(given, nan_weights))


def model_stock(given: Ingredients, baseline: BaselineSpec) -> BaselinePlan:
    """Model Stock (arXiv 2403.19522): each tensor of the mean moved towards the base, the further the less experts
    agree."""
    settings = validate(ModelStockSettings, baseline.settings, f"baseline {baseline.name!r}")
    products = yield from _products(given)
    experts = len(given.experts)
    shares = {name: stock_share(products[name], settings) / experts for name in products}
    rules = []
    for share in dict.fromkeys(shares.values()):
        (rule,) = given.recipe("task_arithmetic", {"weight": share}, {}).rules
        rules.append(replace(rule, tensors=tuple(name for name in shares if shares[name] == share)))
    whole = given.recipe("task_arithmetic", {"weight": 0.0}, {})
    return Choice(replace(whole, rules=tuple(rules)))


def metagpt_weights(products: Products) -> list[float]:
    """lambda_i = |tau_i|^2 / sum_k |tau_k|^2.

    Args:
        products: <tau_i, tau_j> over the whole model.

    Raises:
        InvalidInput: all task vectors are 0.
    """
    return _shares([products[index][index] for index in range(len(products))])


def nan_weights(products: Products) -> list[float]:
    """lambda_i = |tau_i|^-1 / sum_k |tau_k|^-1. A task vector that is 0 has no weight and does not count.

    The norm is that of the task vector over the whole model: those of the parameters are nearly the same for all
    fine-tunes of one base, so that their weights would be nearly the same, too.

    Raises:
        InvalidInput: all task vectors are 0.
    """
    squares = [products[index][index] for index in range(len(products))]
    return _shares([1 / math.sqrt(square) if square else 0.0 for square in squares])


def stock_share(products: Products, settings: ModelStockSettings) -> float:
    """t = n cos / (1 + (n - 1) cos), the share of the mean task vector that one tensor keeps, with n experts.

    `cos` is the mean over pairs of experts of the cosines between their task vectors, or the cosine of the mean angle.
    A task vector that is 0 is at right angles with every other.

    Args:
        products: <tau_i, tau_j> of the tensor, of two experts or more.

    Raises:
        InvalidInput: under `negative: raw`, cos = -1 / (n - 1), for which there is no t.
    """
    definition = model_stock_merges.StockDefinition(pair_mean=settings.pair_mean, negative=settings.negative)
    share = model_stock_merges.stock_share(products, definition)
    if share is None:
        raise InvalidInput("the task vectors of a tensor point away from each other, and negative: raw has no answer")
    return share


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values)
    if not total:
        raise InvalidInput("no expert differs from the base: there is no task vector to weigh")
    return [value / total for value in values]


def _by_length(given: Ingredients, rule: Callable[[Products], list[float]]) -> BaselinePlan:
    """Task arithmetic with weights by the lengths of the task vectors over the whole model."""
    products = yield from _products(given)
    experts = range(len(given.experts))
    whole = tuple(tuple(math.fsum(each[i][j] for each in products.values()) for j in experts) for i in experts)
    return Choice(given.recipe("task_arithmetic", {"weight": rule(whole)}, {}))


def _products(given: Ingredients) -> Generator[Sequence[Step], Sequence[StepResult | None], Mapping[str, Products]]:
    (found,) = yield [ProductsRequest()]
    if not isinstance(found, ProductsResult):
        raise InvalidInput("the task vectors cannot be multiplied")
    return found.products
