"""Formulas compiled to one loop over memory: this file has all of inductor's machinery, and nothing else.

On a CPU a formula is compiled ahead of time (torch.export and AOTInductor) into a package on disk, by a process of its
own in the background; until the package is there the caller merges eagerly, with the same bits. A package is loaded in
milliseconds without a compiler and without the compiler's Python modules, has no guards, and takes tensors of any
length that is a multiple of `LANES`; the few elements that are left over are merged eagerly. Nothing is ever compiled
again for another size, another candidate or another worker. Elsewhere torch.compile does it in this process before the
first use, so that a device has one path from the first candidate on. On a CPU the loops of `masked_passes` serve for
formulas with the masks of DARE, where they cover their types.

Covered: base and sources in float32, bfloat16 or float16 in any mixture, outputs in the same types. Fused
multiply-adds, which round differently, are switched off on the CPU, where they are also off by default.
Not covered: float64, and compilers for which inductor has no vectorised code.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from evomerge.native.compiled_loops import default_folder, target_machine
from evomerge.passes.masked_passes import masked_pass
from evomerge.tensors import competition, elementary, formula_numbers, masks, plans, rank_masks, selection, sums
from evomerge.tensors.formula_numbers import Numbers, Words
from evomerge.tensors.plans import Formula, evaluate

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATISTIC_DTYPES = DTYPES | {"int16": torch.int16, "int32": torch.int32}  # ranks are integers
EXAMPLE_ELEMENTS = 4096  # of the tensors that a formula is traced with
# Packages take lengths that are multiples of this: a vector of 16-bit floats with AVX2. Without the code for what is
# left over, which a compiler cannot keep out of the loop, a pass is a fifth to a third faster.
LANES = 16
SHORTEST = 2 * LANES  # export takes a single vector for a constant

_OPTIONS = {"cpp.dynamic_threads": True, "cpp.enable_floating_point_contract_flag": "off", "compile_threads": 1}
# What inductor stores on the way becomes a loop of its own that is fused again, and where one of those loops has no
# 16-bit floats all of them take half a vector at a time. So it is in an election, unless more is inlined; an average
# takes twice as long if more is.
_KIND_OPTIONS = {
    "election": {"realize_opcount_threshold": 80, "realize_reads_threshold": 11},
}
# On a GPU eager torch divides exactly and keeps denormals; triton does neither unless told. Older torch has no choice.
_DEVICE_OPTIONS = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}

Kernel = Callable[[Sequence[Tensor]], Tensor]
"""Takes the tensors of `KernelKind.arguments` and writes the merged piece into `out`; returns what `run` does."""


@dataclass(frozen=True, kw_only=True)
class KernelKind:
    """Formula, and dtypes by name of base (None: no base), sources, their statistics (if the formula has some) and
    output: all that a kernel is compiled for."""

    formula: Formula
    base: str | None
    sources: tuple[str, ...]
    out: str
    statistics: tuple[str, ...] = ()

    def run(self, *arguments: Tensor) -> Tensor:
        """The kernel itself, in eager operations. For the arguments see `arguments`.

        Returns:
            float32 of shape (): of elections the sum of the votes, exact for pieces of up to 2**24 elements; of others
            the largest magnitude written. NaN or infinite where what is written is not finite.
        """
        rest = list(arguments)
        base = rest.pop(0) if self.base else None
        sources, rest = rest[: len(self.sources)], rest[len(self.sources) :]
        statistics, (numbers, words, out) = rest[: len(self.statistics)], rest[len(self.statistics) :]
        merged, votes = evaluate(self.formula, base, sources, statistics=statistics, numbers=numbers, words=words)
        rounded = merged.to(out.dtype)
        out.copy_(rounded)
        if votes is None:
            return rounded.abs().amax().float()
        # Through the rounded value, and one reduction only: otherwise inductor makes two loops of it.
        return (votes + rounded.float() * numbers[Numbers.ZERO, 0]).sum(dtype=torch.float32)

    def arguments(self, elements: int) -> list[Tensor]:
        """Arguments of the right kinds: base, sources, statistics, numbers, words, out; all but numbers and words are
        pieces of equal length."""
        names = (self.base, *self.sources, *self.statistics)
        models = [torch.zeros(elements, dtype=STATISTIC_DTYPES[name]) for name in names if name]
        numbers, words = torch.ones(len(Numbers), len(self.sources)), torch.ones(len(Words), len(self.sources))
        numbers[Numbers.ZERO] = 0.0
        numbers = numbers.double() if self.formula.has_statistics else numbers
        return [*models, numbers, words.int(), torch.zeros(elements, dtype=DTYPES[self.out])]


class Kernels:
    """The kernels of one bank: compiled ones where they exist, None for those that do not yet."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        """`folder` holds the packages, by default `default_folder()`; it need not exist."""
        self.device = device
        self._folder = folder or default_folder()
        self._loaded: dict[KernelKind, Kernel] = {}
        self._paths: dict[KernelKind, Path] = {}
        self._compiling: tuple[Path, subprocess.Popen[bytes]] | None = None
        self._can_compile = True

    def find(self, kind: KernelKind, *, compile_missing: bool) -> Kernel | None:
        """The compiled kernel, or None as long as there is none: then merge eagerly.

        Args:
            compile_missing: have a missing one compiled, on a CPU in the background.
        """
        if kind not in self._loaded:
            find = self._find_here if self.device.type == "cpu" else self._compile_here
            kernel = find(kind, compile_missing and self._can_compile)
            if kernel is None:
                return None
            self._loaded[kind] = kernel
        return self._loaded[kind]

    def compile(self, kind: KernelKind) -> Kernel | None:
        """The compiled kernel, waiting until it is. None: it cannot be compiled here, and a warning was logged."""
        while (kernel := self.find(kind, compile_missing=True)) is None and self._can_compile:
            if self._compiling is not None:
                self._compiling[1].wait()
        return kernel

    def _find_here(self, kind: KernelKind, compile_missing: bool) -> Kernel | None:
        dtypes = (*filter(None, [kind.base]), *kind.sources, kind.out)
        loop = masked_pass(kind.formula, dtypes, self._folder, compile_missing=compile_missing)
        return loop or self._find_package(kind, compile_missing)

    def _find_package(self, kind: KernelKind, compile_missing: bool) -> Kernel | None:
        if kind not in self._paths:  # asked for by every rule of every candidate
            self._paths[kind] = package_path(self._folder, kind)
        path = self._paths[kind]
        self._look_after_compiler()
        if path.exists():
            return self._load(path)
        # One at a time: compiling competes with the search itself.
        if compile_missing and self._can_compile and self._compiling is None:
            self._compiling = path, _start_compiling(path, kind)
        return None

    def _look_after_compiler(self) -> None:
        if self._compiling is None or self._compiling[1].poll() is None:
            return
        path, _ = self._compiling
        self._compiling = None
        if not path.exists():
            self._give_up(f"see {path.with_suffix('.log')}")

    def _load(self, path: Path) -> Kernel | None:
        try:
            return _load(path)
        except RuntimeError as error:  # what torch raises for a file that is no package, or not for this machine
            self._give_up(f"{path}: {error}".partition("\n")[0])
            return None

    def _compile_here(self, kind: KernelKind, compile_missing: bool) -> Kernel | None:
        if not self._can_compile:  # on a device also for small rules: there it is one path, whatever the size
            return None
        known = set(torch._inductor.list_options())
        options: dict[str, Any] = {name: value for name, value in _DEVICE_OPTIONS.items() if name in known}
        try:
            compiled = torch.compile(_run_alone(kind), dynamic=True, fullgraph=True, options=options)
            compiled(*(argument.to(self.device) for argument in kind.arguments(EXAMPLE_ELEMENTS)))
        except Exception as error:  # whatever a missing or broken compiler raises: the eager path serves
            self._give_up(str(error).partition("\n")[0])
            return None
        return lambda arguments: compiled(*arguments)

    def _give_up(self, reason: str) -> None:
        logger.warning("merging eagerly, several times slower: formulas cannot be compiled here (%s)", reason)
        self._can_compile = False


_NUMBERS = count()


def _run_alone(kind: KernelKind) -> Callable[..., Tensor]:
    """`kind.run` with code of its own: torch counts compilations by code, and compiles the same a few times only."""
    run = KernelKind.run
    code = run.__code__.replace(co_name=f"run_{next(_NUMBERS)}")
    return MethodType(FunctionType(code, run.__globals__), kind)


def package_path(folder: Path, kind: KernelKind) -> Path:
    """Path of a kernel's package. The name depends on everything that determines its machine code."""
    content = json.dumps([asdict(kind), _sources_digest(), target_machine()], sort_keys=True)
    return folder / f"{kind.formula.kind}-{hashlib.sha256(content.encode()).hexdigest()[:24]}.pt2"


def compile_package(path: Path, kind: KernelKind) -> None:
    """Compile a kernel into a package, written aside and renamed. Takes some ten seconds.

    Raises:
        whatever torch raises where there is no C++ compiler.
    """
    arguments = kind.arguments(EXAMPLE_ELEMENTS)
    length = LANES * torch.export.Dim("vectors", min=SHORTEST // LANES, max=1 << 36)
    shapes = tuple({0: length} if argument.dim() == 1 else None for argument in arguments)
    options = _OPTIONS | _KIND_OPTIONS.get(kind.formula.kind, {})
    exported = torch.export.export(_Module(kind), tuple(arguments), dynamic_shapes=(shapes,), strict=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        written = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(Path(aside) / path.name), inductor_configs=options
        )
        Path(written).replace(path)


class _Module(torch.nn.Module):
    def __init__(self, kind: KernelKind) -> None:
        super().__init__()
        self._kind = kind

    def forward(self, *arguments: Tensor) -> tuple[Tensor]:
        return (self._kind.run(*arguments),)


def _load(path: Path) -> Kernel:
    # The class behind torch._inductor.aoti_load_package, which would import the whole compiler to get at it.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)

    def kernel(arguments: Sequence[Tensor]) -> Tensor:
        return loader.run(list(arguments))[0]

    return kernel


def _start_compiling(path: Path, kind: KernelKind) -> subprocess.Popen[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "evomerge.passes.kernels", str(path), json.dumps(asdict(kind))]
    # In an environment of its own: inductor writes its files beside the packages, and takes no more than one core.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(path.parent / "inductor"), "OMP_NUM_THREADS": "1"}
    package = str(Path(__file__).parent.parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with path.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _main(path: Path, kind: KernelKind) -> None:
    """Compile unless another process does so, then wait for it. The system takes the lock from a process that dies."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            os.nice(5)
            compile_package(path, kind)


def _kind_from(content: dict[str, Any]) -> KernelKind:
    formula = Formula(**content["formula"])
    return KernelKind(
        formula=formula,
        base=content["base"],
        sources=tuple(content["sources"]),
        out=content["out"],
        statistics=tuple(content["statistics"]),
    )


@cache
def _sources_digest() -> str:
    modules = (plans, competition, elementary, formula_numbers, masks, rank_masks, selection, sums)
    files = (*(str(module.__file__) for module in modules), __file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), _kind_from(json.loads(sys.argv[2])))
