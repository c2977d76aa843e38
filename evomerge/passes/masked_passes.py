"""Rules on masked task vectors (DARE, DELLA) in one pass over memory, by compiled loops with the bits of the formulas.

Three quarters of what such a rule costs are its masks: inductor's code for them, which makes vectors of comparisons and
indices of single numbers, takes half as long again as that of `masked_passes.cpp`, which is moreover compiled in
seconds, once for all options and any number of sources.

DELLA, whose ranks are integers of 16 bits, takes fifteen times as long with inductor's code.

Covered: sums and elections of base and sources on a CPU in float32 or bfloat16, in any mixture, with outputs likewise.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.native.compiled_loops import (
    WIDE,
    LoopTensor,
    compiled_library,
    library_path,
    load_loops,
    loop_source,
    loop_tensor,
    share,
)
from evomerge.tensors.plans import Formula

logger = logging.getLogger(__name__)

SOURCE = loop_source("masked_passes.cpp")
WIDTH = 16  # elements of a vector of the loops
SHARED = 1 << 14  # vectors that are worth more than one thread

Pass = Callable[[Sequence[Tensor]], Tensor]
"""As `kernels.Kernel`."""

# Of elections: agg and weighting, in the order of `Aggregation`.
_AGGREGATIONS = ("dis-max", "dis-sum", "dis-mean count", "dis-mean norm")
_RANKINGS = ("", "none", "1/p", "l1_match")  # `Formula.ranked`, in the order of `Ranking`
_DTYPES = {str(dtype).removeprefix("torch.") for dtype in WIDE}


class _MaskedRule(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("is_election", "elects_by_count", "aggregation", "is_scaled", "ranking")]

    @classmethod
    def of(cls, formula: Formula) -> _MaskedRule:
        ranking = _RANKINGS.index(formula.ranked)
        if formula.kind != "election":
            return cls(0, 0, 0, formula.kind == "scaled", ranking)
        agg = formula.agg
        if agg == "dis-mean":
            agg = "dis-sum" if formula.weighting == "sum" else f"dis-mean {formula.weighting}"
        return cls(1, formula.elect == "count", _AGGREGATIONS.index(agg), 0, ranking)


_MODEL = POINTER(LoopTensor)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "write_rule": (
        c_float,
        (_MODEL, _MODEL, _MODEL, c_int64, c_void_p, c_void_p, POINTER(_MaskedRule), c_int64, c_int64, _MODEL),
    ),
}


def masked_pass(formula: Formula, dtypes: Sequence[str], folder: Path, *, compile_missing: bool) -> Pass | None:
    """The loop for a formula. It takes pieces of whole vectors.

    Args:
        dtypes: names of all types that go in and out.
        folder: holds the compiled library.
        compile_missing: compile the library, unless it is there.

    Returns:
        None where no loop covers the formula and its types, or the library is not compiled.
    """
    if not (_covers(formula) and _DTYPES.issuperset(dtypes)):
        return None
    path = library_path(SOURCE, folder)
    if not (compile_missing or path.exists()):
        return None
    loops = _loops(path)
    return None if loops is None else lambda arguments: _run(loops, _MaskedRule.of(formula), arguments)


def _covers(formula: Formula) -> bool:
    """Whether a formula is masked and has nothing else than options of DARE or DELLA, and of TIES."""
    known = Formula(
        kind=formula.kind,
        drops=not formula.ranked,
        ranked=formula.ranked,
        elect=formula.elect,
        agg=formula.agg,
        weighting=formula.weighting,
    )
    kinds = ("scaled", "election") if formula.ranked else ("sum", "election")
    return formula == known and formula.agg != "elected-sum" and formula.kind in kinds


@cache
def _loops(path: Path) -> ctypes.CDLL | None:
    try:
        return load_loops(compiled_library(SOURCE, path.parent), _SIGNATURES)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.info("the loops of masked passes cannot be compiled here (%s)", error)  # kernels warn
        return None


def _run(loops: ctypes.CDLL, rule: _MaskedRule, arguments: Sequence[Tensor]) -> Tensor:
    base, *given_models, numbers, words, out = arguments
    sources = given_models[: words.shape[1]]
    every = [LoopTensor(each.data_ptr(), each.dtype == torch.int32) for each in given_models[len(sources) :]]
    models, ranks = ((LoopTensor * len(each))(*each) for each in (list(map(loop_tensor, sources)), every))
    numbers = numbers.float()  # as formulas with statistics have them in their arithmetic
    given = loop_tensor(base), models, ranks, len(sources), numbers.data_ptr(), words.data_ptr(), rule
    target = loop_tensor(out)

    def write(start: int, stop: int) -> float:
        return float(loops.write_rule(*given, start * WIDTH, stop * WIDTH, target))

    checks = torch.tensor(share(write, out.numel() // WIDTH, worthwhile=SHARED))
    return checks.sum() if rule.is_election else checks.amax()
