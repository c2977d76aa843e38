"""Table of merges by mergekit and by evomerge, of the same files on the same toy models, weight by weight.

`python benchmarks/peer_mergekit.py --mergekit ENVIRONMENT [--only METHOD …] [--rows FILE] [--write FILE]`

`make peer-mergekit` builds the environment. Rows are printed as they come. Ends with exit code 1 where the weights of a
merge are not alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import torch
import yaml
from peer_boundaries import at_bounds
from peer_cases import CASES, Case
from peer_comparison import Difference, Tensors, difference, distance, read, traits
from peer_models import KINDS, NAMES, make_models

from evomerge.errors import EvomergeError
from evomerge.recipe import Recipe
from evomerge.static_merges.static_merge import merge_file

COMMANDS = Path(__file__).parent / "peer_commands.py"
DOCUMENT = Path(__file__).parent.parent / "docs" / "peer_mergekit.md"
SEEDS = range(6)
FAR = 8.0  # standard errors of six seeds each, the largest of some twenty means
NARROW = "bfloat16, tied"  # models on which mergekit also computes in 16 bits
SEEDED = ("bfloat16, untied, shards", "float32, tied, shards")

INTRODUCTION = """\
# Merges by mergekit and by evomerge

Written by `make peer-mergekit` with {versions}: {merges} merges of toy models by `mergekit-yaml` and, from the same
file, by `evomerge merge`. NOT alike: {failed}.

Files say `dtype: float32` beside the `out_dtype` of the result: mergekit then computes as evomerge does and rounds
once. (`arcee_fusion`: `dtype: float64`; in float32 the rounding of its divergences decides for some elements.)
*Identical*: every bit. *Equal*: no element is further apart than one step of bfloat16 at the largest of the numbers
that are added there. *Tied*: the share of elements whose magnitude is exactly the bound of what is kept. Which of them
are kept is chance: mergekit takes those that its sort finds, evomerge those of lowest index, and both as many as the
share says. *Alike*, for random masks: over six seeds each, by decile of the largest magnitude in its row, the share of
changed elements and the mean change. A dash: not compared on these models.

Weights in the columns *changes of …* are smaller by the same factor as the changes, and the experts change unevenly:
mergekit has bounds of its own for short task vectors, as those of ordinary fine-tunes are (`sce`, `model_stock`).

The last column has the share of elements that mergekit itself makes otherwise from bfloat16 models with
`dtype: bfloat16`: most of its methods then round every difference, product and sum to 16 bits. evomerge does not, and
says so when it reads such a file.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One merge on models of one kind.

    Attributes:
        found: how far the weights are apart; None for random masks, or where a program makes no merge.
        rounding: how far mergekit is from itself when it computes in 16 bits; None where that was not tried.
        apart: of random masks, the largest distance of a mean in standard errors.
        ours, theirs: why a program makes no merge.
    """

    case: Case
    kind: str
    found: Difference | None = None
    rounding: Difference | None = None
    apart: float | None = None
    ours: str = ""
    theirs: str = ""

    @property
    def alike(self) -> bool:
        if self.found is not None:
            return self.found.beyond == self.found.tied
        return self.apart is not None and self.apart < FAR


class Peer:
    """mergekit in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process = process
        self._log = log

    def merge(self, file: Path, out: Path, *, seed: int) -> str:
        """An empty text, or why there is no merge."""
        line = [str(file), str(out), "--quiet", "--no-copy-tokenizer", "--random-seed", str(seed)]
        print(json.dumps(line), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            sys.exit(f"mergekit has ended:\n{self._log.read()}")
        return str(json.loads(answer))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mergekit", type=Path, required=True, help="the environment that has mergekit")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="these methods; writes no document")
    parser.add_argument(
        "--rows", type=Path, help="keeps the rows that are made, and has those of a run that was stopped"
    )
    parser.add_argument("--write", type=Path, default=DOCUMENT, help="where the table goes (default %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if not given.only or case.method in given.only]
    made = [] if given.rows is None or not given.rows.exists() else read_rows(given.rows)
    with peer(given.mergekit) as program, tempfile.TemporaryDirectory() as folder:
        for row in rows(program, Path(folder), chosen, {(id(row.case), row.kind) for row in made}):
            made.append(row)
            if given.rows is not None:
                append_row(given.rows, row)
            print(f"{row.kind:<28}{row.case.method:<18}{row.case.options:<40}{in_words(row)}", flush=True)
    if not given.only:
        given.write.write_text(document(made, version(given.mergekit)), encoding="utf-8")
    return 0 if all(row.alike for row in made) else 1


@contextmanager
def peer(environment: Path) -> Iterator[Peer]:
    command = [environment / "bin" / "python", COMMANDS, "mergekit-yaml"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log, **pipes) as process:
        yield Peer(process, log)


def version(environment: Path) -> str:
    """The versions that the table is of."""
    listed = [environment / "bin" / "python", "-m", "pip", "list", "--format", "json"]
    found = {each["name"]: each["version"] for each in json.loads(subprocess.check_output(listed, text=True))}
    return f"mergekit {found['mergekit']} and torch {found['torch']}"


def read_rows(path: Path) -> list[Row]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for row in found:
        row |= {key: Difference(**row[key]) for key in ("found", "rounding") if row[key] is not None}
    cases = {(case.method, case.options): case for case in CASES}
    return [Row(**row | {"case": cases[tuple(row["case"])]}) for row in found]


def append_row(path: Path, row: Row) -> None:
    with path.open("a") as file:
        print(json.dumps(asdict(row) | {"case": [row.case.method, row.case.options]}), file=file)


def rows(program: Peer, folder: Path, cases: Sequence[Case], made: set[tuple[int, str]]) -> Iterator[Row]:
    """The rows that are not made yet."""
    for name, kind in KINDS.items():
        models = folder / name.replace(" ", "-")
        make_models(models, kind)
        weights = {model: read(models / model) for model in NAMES}
        for case in (case for case in cases if (id(case), name) not in made):
            file = models / "merge.yml"
            file.write_text(yaml.safe_dump(case.content(str(models), kind.written), sort_keys=False))
            if case.seeded:
                if name in SEEDED:
                    yield compare_seeded(program, file, case, name, weights)
                continue
            row, theirs = compare(program, file, case, name, weights)
            if name == NARROW and theirs is not None:
                file.write_text(yaml.safe_dump(case.content(str(models), kind.written, narrow=True), sort_keys=False))
                narrow = merge_there(program, file, 0)
                if not isinstance(narrow, str):
                    row = replace(row, rounding=difference(theirs, narrow, list(weights.values()), {}))
            yield row


def compare(
    program: Peer, file: Path, case: Case, kind: str, weights: dict[str, Tensors]
) -> tuple[Row, Tensors | None]:
    """The row, and the weights by mergekit where both programs make the merge."""
    ours, theirs = merge_here(file, 0), merge_there(program, file, 0)
    if isinstance(ours, str) or isinstance(theirs, str):
        return Row(case=case, kind=kind, ours=_fault(ours), theirs=_fault(theirs)), None
    recipe, merged = ours
    bounds = at_bounds(recipe, weights)
    return Row(case=case, kind=kind, found=difference(merged, theirs, list(weights.values()), bounds)), theirs


def compare_seeded(program: Peer, file: Path, case: Case, kind: str, weights: dict[str, Tensors]) -> Row:
    experts = [weights[name] for name in case.experts]
    found: list[list[list[float]]] = [[], []]
    for seed in SEEDS:
        ours, theirs = merge_here(file, seed), merge_there(program, file, seed)
        if isinstance(ours, str) or isinstance(theirs, str):
            return Row(case=case, kind=kind, ours=_fault(ours), theirs=_fault(theirs))
        for one, merged in zip(found, (ours[1], theirs), strict=True):
            one.append(traits(merged, weights["base"], experts))
    return Row(case=case, kind=kind, apart=distance(*found))


def merge_here(file: Path, seed: int) -> tuple[Recipe, Tensors] | str:
    """The recipe and the weights by `evomerge merge`, or why there are none."""
    out = file.parent / "ours"
    try:
        merge_file(file, out, places={}, seed=seed)
    except EvomergeError as error:
        return str(error).replace(f"{file}, ", "")
    recipe = Recipe.from_json((out / "recipe.json").read_text())
    return recipe, _taken(out)


def merge_there(program: Peer, file: Path, seed: int) -> Tensors | str:
    """The weights by `mergekit-yaml`, or why there are none."""
    out = file.parent / "theirs"
    return program.merge(file, out, seed=seed) or _taken(out)


def _taken(out: Path) -> Tensors:
    tensors = {name: tensor.clone() for name, tensor in read(out).items()}
    shutil.rmtree(out)
    return tensors


def _fault(merged: object) -> str:
    return merged if isinstance(merged, str) else ""


def in_words(row: Row) -> str:
    """A cell of the table."""
    if row.apart is not None:
        return "alike" if row.alike else f"NOT alike: {row.apart:.1f} standard errors"
    if row.found is None:
        return f"NOT compared: {row.ours or 'merged'}; mergekit: {row.theirs or 'merged'}"
    found = row.found
    if not found.differing:
        return "identical"
    if not found.beyond:
        return "equal"
    share = f"{found.tied / found.elements:.1%}"
    return (
        f"equal but for {share} tied" if row.alike else f"NOT equal: {found.beyond / found.elements:.2%}, {share} tied"
    )


def document(made: Sequence[Row], versions: str) -> str:
    """The page of the table."""
    failed = sum(not row.alike for row in made)
    lines = [INTRODUCTION.format(versions=versions, merges=len(made), failed=failed or "none")]
    lines += [f"| method | options | {' | '.join(KINDS)} | mergekit in 16 bits |", "|---" * (len(KINDS) + 3) + "|"]
    for case in CASES:
        same = [row for row in made if row.case is case]
        rounding = next((row.rounding for row in same if row.rounding is not None), None)
        own = "–" if rounding is None else f"{rounding.differing / rounding.elements:.1%}"
        of_kind = {row.kind: in_words(row) for row in same}
        kinds = [of_kind.get(name, "–") for name in KINDS]
        cells = [f"`{case.method}`", case.options, *kinds, own]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
