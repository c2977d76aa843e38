"""Diagonal Fisher information of a model's parameters on examples (arXiv 2111.09832).

Squares are taken per example: the square of a gradient that is summed over a batch has cross terms, and is no Fisher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.seeding import derive
from evomerge.statistics.forward import Inputs, evaluation_mode, logits_of, run
from evomerge.tensors.masks import uniform_bits
from evomerge.tensors.whole_embeddings import whole_embeddings

_BITS = 24  # of one draw of `uniform_bits`


def exact_fisher(model: torch.nn.Module, examples: Iterable[Tensor]) -> dict[str, Tensor]:
    """F[j] = 1/N sum_x sum_y p(y|x) (d log p(y|x) / d theta_j)^2, exact over the labels y.

    The model runs in evaluation mode; its gradients, its mode and its parameters remain as they are.

    Args:
        model: maps a batch of one example to logits [1, labels].
        examples: without batch dimension.

    Returns:
        Parameter name -> F, of the parameter's shape, in its dtype and at least float32; each tied parameter once.
        Parameters that the model does not use have F = 0.

    Raises:
        InvalidInput: no examples, or the model gives no finite logits of that shape.
    """
    sums = FisherSums(model)
    for example in examples:
        sums.add_exact(example, what=f"example {sums.count}")
    if not sums.count:
        raise InvalidInput("a Fisher is a mean over examples, but there are none; give at least one")
    return sums.means()


def sampled_fisher(
    model: torch.nn.Module, texts: Sequence[Tensor] | Tensor, mask: Sequence[Tensor] | Tensor | None, seed: int
) -> dict[str, Tensor]:
    """F[j] = 1/N sum_x (d sum_t log p(y_t|x_<=t) / d theta_j)^2, one label y_t drawn from the model per counted token.

    As the labels of different positions are drawn independently of each other, the cross terms of the square vanish in
    expectation: F estimates the sum over counted positions of the exact Fisher, averaged over the texts. A label is a
    function of the seed, the index of the text and the position alone.

    Args:
        model: maps token ids [1, L] to logits [1, L, vocabulary].
        texts: token ids, [L] each or [B, L], padded on the right if at all.
        mask: of the texts' shapes, true or 1 where the logits of a position count; None: everywhere.
        seed: of the draws.

    Returns:
        As `exact_fisher`.

    Raises:
        InvalidInput: no texts, a mask of another shape or one in which nothing counts, or no finite logits.
    """
    masks = [None] * len(texts) if mask is None else list(mask)
    if not len(texts) or len(masks) != len(texts):
        raise InvalidInput(f"give at least one text and a mask for each, but got {len(texts)} and {len(masks)} masks")
    sums = FisherSums(model)
    for text, each in zip(texts, masks, strict=True):
        sums.add_sampled(text, each, seed=seed, what=f"text {sums.count}")
    return sums.means()


class FisherSums:
    """Sums of squared gradients in float64, by parameter name: what has been added so far can be stored.

    Gradients are taken for stand-ins of the parameters, which share their memory, so that neither `requires_grad` nor
    `grad` of the parameters themselves is touched.

    Attributes:
        tensors: the sums.
        count: examples or texts in them.
    """

    def __init__(self, model: torch.nn.Module, inputs_of: Callable[[Tensor], Inputs] = lambda batch: batch) -> None:
        """`inputs_of` turns a batch into the arguments of the model."""
        self._model = model
        self._inputs_of = inputs_of
        self._parameters = floating_parameters(model)
        self._kind = {name: torch.promote_types(each.dtype, torch.float32) for name, each in self._parameters.items()}
        with torch.inference_mode(False):
            self.tensors = {
                name: torch.zeros_like(tensor, dtype=torch.float64, requires_grad=False)
                for name, tensor in self._parameters.items()
            }
        self.count = 0

    def add_exact(self, example: Tensor, what: str) -> None:
        """Add an example, exact over its labels. See `exact_fisher`; `what` names it in errors."""
        with self._differentiable() as leaves:
            logits = logits_of(run(self._model, self._inputs_of(_batch_of_one(example, what)), what, leaves), what)
            if logits.dim() != 2 or len(logits) != 1:
                raise InvalidInput(
                    f"the logits of the model for {what} have the shape {list(logits.shape)}; "
                    "exact Fishers need [1, labels]"
                )
            scores = torch.log_softmax(logits[0].double(), -1)
            for label, score in enumerate(scores):
                last = label == len(scores) - 1
                self._add(score, leaves, factor=float(score.detach().exp()), keep_graph=not last)
        self.count += 1

    def add_sampled(self, text: Tensor, mask: Tensor | None, *, seed: int, what: str) -> None:
        """Add a text, whose number in the draws is `count`. See `sampled_fisher`; `what` names it in errors."""
        counted = _counted(text, mask, what)
        with self._differentiable() as leaves:
            logits = logits_of(run(self._model, self._inputs_of(_batch_of_one(text, what)), what, leaves), what)
            if logits.dim() != 3 or logits.shape[:2] != (1, len(text)):
                raise InvalidInput(
                    f"the logits of the model for {what} have the shape {list(logits.shape)}; "
                    f"sampled Fishers need [1, {len(text)}, vocabulary]"
                )
            positions = counted.nonzero()[:, 0].to(logits.device)
            scores = torch.log_softmax(logits[0, positions].double(), -1)
            labels = _drawn(scores.detach().exp(), positions, derive(seed, "fisher label", self.count))
            self._add(scores.gather(1, labels[:, None]).sum(), leaves)
        self.count += 1

    def means(self) -> dict[str, Tensor]:
        """Parameter name -> sum / count. The sums are used up, so that not all of both are in memory."""
        return {name: (self.tensors.pop(name) / self.count).to(kind) for name, kind in self._kind.items()}

    @contextmanager
    def _differentiable(self) -> Iterator[dict[str, Tensor]]:
        with (
            evaluation_mode(self._model),
            whole_embeddings(self._model),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield {name: parameter.detach().requires_grad_() for name, parameter in self._parameters.items()}

    def _add(self, score: Tensor, leaves: dict[str, Tensor], *, factor: float = 1.0, keep_graph: bool = False) -> None:
        if not score.requires_grad:
            raise InvalidInput("the logits do not depend on any parameter of the model by a graph; it has no Fisher")
        found = torch.autograd.grad(score, list(leaves.values()), retain_graph=keep_graph, allow_unused=True)
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                self.tensors[name].add_(gradient.double().square(), alpha=factor)


def floating_parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that have a Fisher, by name, each tied one once.

    Raises:
        InvalidInput: there are none.
    """
    found: dict[str, Tensor] = {name: each for name, each in model.named_parameters() if each.is_floating_point()}
    if not found:
        raise InvalidInput("the model has no floating-point parameters, and no Fisher")
    return found


def _batch_of_one(example: Tensor, what: str) -> Tensor:
    if not isinstance(example, Tensor):
        raise InvalidInput(f"{what} is a {type(example).__name__}; give a tensor without batch dimension")
    return example.unsqueeze(0)


def _counted(text: Tensor, mask: Tensor | None, what: str) -> Tensor:
    if not isinstance(text, Tensor) or text.dim() != 1:
        raise InvalidInput(f"{what} is no vector of token ids; give a tensor [length]")
    counted = torch.ones(len(text), dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
    if counted.shape != text.shape:
        raise InvalidInput(f"the mask of {what} has the shape {list(counted.shape)}, the text {list(text.shape)}")
    if not bool(counted.any()):
        raise InvalidInput(f"nothing counts in {what}; leave it out, or mark the positions that do")
    return counted


def _drawn(probabilities: Tensor, positions: Tensor, key: int) -> Tensor:
    """One label for each row of probabilities [positions, labels]: the first whose cumulated probability exceeds u."""
    last = int(positions.max()) + 1
    bits = uniform_bits(key, 0, 2 * last, positions.device).view(-1, 2)[positions].double()
    uniform = (bits[:, 0] * 2.0**_BITS + bits[:, 1] + 0.5) * 2.0 ** (-2 * _BITS)
    cumulated = probabilities.cumsum(-1)
    found = torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return found.clamp(max=probabilities.shape[1] - 1)
