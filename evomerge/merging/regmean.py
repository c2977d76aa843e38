"""RegMean: linear layers merged by regression on what each source feeds into them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evomerge.catalogue import layer_of
from evomerge.elementwise.linear import relative_weights, weighted_sum
from evomerge.errors import InvalidInput
from evomerge.tensors.one_thread import one_thread
from evomerge.tensors.rule_tensors import RuleTensors

KEPT_BYTES = 4 << 30  # of products that a worker keeps; layers beyond that are multiplied for every candidate
_ROUNDING = 10.0  # rounding the entries of a Gram moves its eigenvalues by a few eps * sqrt(inputs)
_LARGEST_NOISE = 1e-3  # above it an eigenvalue counts, however narrow the dtype of the Grams


class _Singular(ArithmeticError):
    """A sum of Grams that has no inverse; the message says why."""


def merge_regmean(tensors: RuleTensors) -> Iterator[tuple[str, Tensor]]:
    """Linear layers by `regmean_weight`, where all sources have a Gram; the weighted mean of everything else.

    Dataless knowledge fusion by merging weights of language models (RegMean), arXiv 2212.09849. The statistics are
    Grams by the names of weights. Under `bias: joint` the last input of a layer that has a bias is the constant 1, and
    the bias is solved for as its column.

    A weight is stored [out, in] or, as GPT-2's Conv1D does, [in, out]; which of them the size of its Gram tells. A
    square one is stored as the others of its layer are, or of the model where its layer has no others.

    Yields:
        (name, merged tensor), each once, in the order of the rule's names.

    Raises:
        InvalidInput: a Gram does not fit its weight, or their sum is singular.
        MergeError: all weights are 0.
    """
    shares = relative_weights(tensors.per_source("weight"))
    layers = _Layers(tensors, shares)
    for name in tensors.names:
        merged = layers.merged(name)
        if merged is None:
            merged = tensors.merge(name, lambda piece: weighted_sum(piece.sources, shares))
        yield name, merged
        del merged  # taken: gone before the next is made


class _Layers:
    """The linear layers of a rule that have Grams, each solved when its weight or its bias is first asked for."""

    def __init__(self, tensors: RuleTensors, shares: Sequence[float]) -> None:
        self._tensors = tensors
        self._shares = shares
        self._joint = tensors.options["bias"] == "joint"
        self._waiting: dict[str, Tensor] = {}  # the other half of a joint solution
        self._by_input = tensors.cached(("regmean", "stored by input", self._joint), self._layouts)

    def merged(self, name: str) -> Tensor | None:
        """The merged weight, or under `bias: joint` bias; None for what no layer with Grams has."""
        if name in self._waiting:
            return self._waiting.pop(name)
        if name in self._by_input:
            solved = self._solved(name)
            bias = self._bias_of(name)
            if bias is None:
                return self._as_stored(name, solved)
            if bias in self._tensors.names:
                self._waiting[bias] = self._cast(bias, solved[:, -1])
            return self._as_stored(name, solved[:, :-1])
        weight = _weight_of(name)
        if weight is None or weight not in self._by_input or self._bias_of(weight) != name:
            return None
        solved = self._solved(weight)
        if weight in self._tensors.names:
            self._waiting[weight] = self._as_stored(weight, solved[:, :-1])
        return self._cast(name, solved[:, -1])

    def _solved(self, name: str) -> Tensor:
        """[out, in], in float64; with the bias as the last column under `bias: joint`."""
        device, bias = self._tensors.like(name).device, self._bias_of(name)
        weights = []
        for source in self._tensors.sources:
            weight = source[name].detach().to(device, torch.float64)
            weight = (weight.T if self._by_input[name] else weight).contiguous()
            column = [] if bias is None else [source[bias].detach().to(device, torch.float64)[:, None]]
            weights.append(torch.cat([weight, *column], dim=1))
        scaling, ridge = self._tensors.shared("scaling"), self._tensors.shared("ridge")
        grams = [gram.detach() for gram in self._grams(name)]
        products = self._products(name, weights, grams)
        return regmean_weight(
            name, weights, grams, shares=self._shares, scaling=scaling, ridge=ridge, products=products
        )

    def _products(self, name: str, weights: list[Tensor], grams: list[Tensor]) -> list[Tensor]:
        """G_i W_i' of each source: no candidate changes them, so that they are kept as long as there is room."""
        kept = self._kept
        if name not in kept:
            products = gram_products(weights, grams)
            if _nbytes(products) + sum(map(_nbytes, kept.values())) > KEPT_BYTES:
                return products
            kept[name] = products
        return kept[name]

    @property
    def _kept(self) -> dict[str, list[Tensor]]:
        return self._tensors.cached(("regmean", "products", self._joint), dict[str, list[Tensor]])

    def _grams(self, name: str) -> list[Tensor]:
        """The Gram of each source; empty where one has none."""
        found = [gram for gram in self._tensors.statistic(name) if gram is not None]
        return found if len(found) == len(self._tensors.sources) else []

    def _layouts(self) -> dict[str, bool]:
        """Tensor name -> whether it is stored [in, out], for all weights of the model with Grams, which are checked."""
        names = [name for name in self._tensors.whole_model if self._grams(name)]
        return _square_like_their_layer({name: self._layout(name) for name in names})

    def _layout(self, name: str) -> bool | None:
        grams, bias = self._grams(name), self._bias_of(name)
        for source, gram in enumerate(grams):
            check_gram(gram, f"the Gram of source {source} for tensor {name!r}")
            if gram.shape != grams[0].shape:
                raise InvalidInput(
                    f"the Gram of source {source} for tensor {name!r} is {list(gram.shape)}, that of source 0 "
                    f"{list(grams[0].shape)}; both are of the inputs of one layer"
                )
        like = self._tensors.like
        return stored_by_input(name, like(name), grams[0], None if bias is None else like(bias))

    def _bias_of(self, weight: str) -> str | None:
        """The bias that is solved for together with a weight."""
        bias = weight.removesuffix("weight") + "bias"
        like = self._tensors.sources[0]
        return bias if self._joint and weight.endswith("weight") and bias in like and like[bias].dim() == 1 else None

    def _as_stored(self, name: str, weight: Tensor) -> Tensor:
        return self._cast(name, weight.T if self._by_input[name] else weight)

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._tensors.dtype([name]), copy=True).contiguous()


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _weight_of(bias: str) -> str | None:
    return bias.removesuffix("bias") + "weight" if bias.endswith("bias") else None


def _square_like_their_layer(by_input: dict[str, bool | None]) -> dict[str, bool]:
    """Tensor name -> whether it is stored [in, out]; a square one, None, like the others of its layer or of the model.

    Where these differ from each other, or there are none, it is stored [out, in].
    """
    layers = layer_of(list(by_input))

    def like(name: str) -> bool:
        nearby = {known for other, known in by_input.items() if layers[other] == layers[name] and known is not None}
        return (nearby or {known for known in by_input.values() if known is not None}) == {True}

    return {name: like(name) if known is None else known for name, known in by_input.items()}


def regmean_weight(
    name: str,
    weights: Sequence[Tensor],
    grams: Sequence[Tensor],
    *,
    shares: Sequence[float],
    scaling: float,
    ridge: float,
    products: Sequence[Tensor] | None = None,
) -> Tensor:
    """W' = (sum_i c_i Gt_i)^-1 sum_i c_i Gt_i W_i', with Gt_i = a G_i + (1 - a) diag(G_i) + ridge I.

    Dataless knowledge fusion by merging weights of language models (RegMean), arXiv 2212.09849. W minimises
    sum_i c_i tr (W - W_i) Gt_i (W - W_i)'; with a = 1 and no ridge that is the squared distance of the layer's outputs
    from those of each source on the source's own inputs. The ridge is in both sums, so that it draws the result towards
    the weighted mean of the W_i, not towards 0.

    Args:
        name: of the weight, for errors.
        weights: W_i of each source, [out, in].
        grams: G_i of each source, [in, in].
        shares: c_i >= 0; only their ratios matter.
        scaling: a.
        ridge: added to every diagonal.
        products: of `gram_products` for the same weights and Grams; None: computed here.

    Returns:
        W, [out, in], in float64.

    Raises:
        InvalidInput: the sum of Grams is singular.
    """
    device, total = weights[0].device, sum(shares)
    left = torch.zeros(grams[0].shape, dtype=torch.float64, device=device)
    right = torch.zeros(weights[0].T.shape, dtype=torch.float64, device=device)
    if products is None:
        products = gram_products(weights, grams)
    with one_thread():
        for weight, gram, product, share in zip(weights, grams, products, shares, strict=True):
            left += scaled_gram(gram.to(device), scaling, ridge) * (share / total)
            # Gt_i W_i' = a G_i W_i' + ((1 - a) diag(G_i) + ridge I) W_i'
            diagonal = gram.to(device).diagonal().double() * (1 - scaling) + ridge
            right += (product * scaling + weight.T.double() * diagonal[:, None]) * (share / total)
        precision = max(torch.finfo(gram.dtype).eps for gram in grams)
        try:
            return _solved(left, right, precision, lowest=math.inf if ridge > 0 else 1 - scaling).T
        except _Singular as reason:
            raise InvalidInput(
                f"the sum of the Grams of tensor {name!r} is singular: {reason}; "
                "give a ridge above 0 (where the method has one), a scaling below 1, or Grams of more inputs"
            ) from None


def gram_products(weights: Sequence[Tensor], grams: Sequence[Tensor]) -> list[Tensor]:
    """G_i W_i' of each source, [in, out] in float64, which weights, scaling and ridge of a merge do not change."""
    with one_thread():
        return [
            gram.to(weight.device, torch.float64) @ weight.T.double()
            for weight, gram in zip(weights, grams, strict=True)
        ]


def scaled_gram(gram: Tensor, scaling: float, ridge: float) -> Tensor:
    """a G + (1 - a) diag(G) + ridge I, in float64 and new memory."""
    scaled = gram.double() * scaling
    scaled.diagonal().copy_(gram.diagonal().double() + ridge)
    return scaled


def _solved(matrix: Tensor, right: Tensor, precision: float, *, lowest: float) -> Tensor:
    """matrix^-1 right for a sum of Grams, by Cholesky after its diagonal is scaled to ones.

    Rounding may hide a singular matrix from the decomposition, so that the eigenvalues are compared with the
    `precision` of the Grams, unless none can be that small.

    Args:
        lowest: no eigenvalue of the scaled matrix is below it: 1 - a for a < 1; infinite with a ridge, which makes any
            sum of Grams regular.
    """
    diagonal = matrix.diagonal()
    if not bool((diagonal > 0).all()):
        raise _Singular(f"input {int((diagonal <= 0).nonzero()[0])} is 0 for every source")
    scaled, scale = _unit_diagonal(matrix), diagonal.rsqrt()[:, None]
    smallest = min(_LARGEST_NOISE, _ROUNDING * precision * len(matrix) ** 0.5)
    if lowest <= smallest and float(torch.linalg.eigvalsh(scaled)[0]) <= smallest:
        raise _Singular("some inputs are sums of others on all texts")
    factor, info = torch.linalg.cholesky_ex(scaled)
    if int(info):
        raise _Singular("it is not positive definite")
    return torch.cholesky_solve(right * scale, factor) * scale


def _unit_diagonal(matrix: Tensor) -> Tensor:
    scale = matrix.diagonal().rsqrt()
    scaled = matrix * scale * scale[:, None]
    return (scaled + scaled.T) / 2


def stored_by_input(name: str, weight: Tensor, gram: Tensor, bias: Tensor | None = None) -> bool | None:
    """Whether a weight is stored [in, out], as GPT-2's Conv1D does, by the size of its Gram; None for a square one.

    Args:
        bias: of the layer, if the last input of the Gram is the constant 1 that it belongs to.

    Raises:
        InvalidInput: it is no matrix with that number of inputs.
    """
    shape, inputs = tuple(weight.shape), len(gram) - (bias is not None)
    ways = {False: shape, True: shape[::-1]} if len(shape) == 2 else {}
    fits = [
        by_input
        for by_input, (rows, columns) in ways.items()
        if columns == inputs and (bias is None or rows == len(bias))
    ]
    if not fits:
        one = ", the last of them the constant 1 of `bias: joint`," if bias is not None else ""
        raise InvalidInput(
            f"the Gram of tensor {name!r} is of {len(gram)} inputs{one} but the weight has the shape {list(shape)}; "
            "one of its dimensions is the number of inputs"
        )
    return None if len(fits) == 2 else fits[0]


def check_gram(gram: Tensor, where: str) -> None:
    """Refuse what cannot be a Gram.

    Args:
        where: names it in the message.

    Raises:
        InvalidInput: no floating-point tensor, no square matrix, not symmetric or not finite, a negative diagonal.
    """
    if not isinstance(gram, Tensor) or not gram.is_floating_point():
        kind = str(gram.dtype) if isinstance(gram, Tensor) else type(gram).__name__
        raise InvalidInput(f"{where} is {kind}; give a floating-point tensor")
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
        raise InvalidInput(f"{where} has the shape {list(gram.shape)}; give [inputs, inputs]")
    wide = gram.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise InvalidInput(f"{where} is not finite; calibrate with other texts or in a wider dtype")
    largest = wide.abs().max()
    if bool((wide - wide.T).abs().max() > torch.finfo(gram.dtype).eps ** 0.5 * largest) or bool(
        (wide.diagonal() < 0).any()
    ):
        raise InvalidInput(f"{where} is not symmetric with squares on its diagonal; give X'X of the layer's inputs X")
