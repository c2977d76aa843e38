"""Table of the architectures of transformers that run here: small random models, each through a whole search.

`python benchmarks/architectures.py [--only NAME …] [--jobs 1] [--write docs/architectures.md]`

The models are those of `architecture_zoo.py`; `architecture_examination.py` says what is compared. Rows are printed as
they come. Ends with exit code 1 where a model is neither equal nor refused by `evomerge check`.
"""

from __future__ import annotations

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}  # read when they are imported

import argparse
import contextlib
import logging
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from architecture_examination import EQUAL, FAILED, REFUSED, Row, examine
from architecture_pack import write_pack
from architecture_zoo import ZOO, Specimen

DOCUMENT = Path(__file__).parent.parent / "docs" / "architectures.md"


def main() -> int:
    arguments = _arguments()
    chosen = [each for each in ZOO if not arguments.only or each.name in arguments.only]
    if unknown := set(arguments.only) - {each.name for each in chosen}:
        sys.exit(f"no such model in the zoo: {', '.join(sorted(unknown))}; it has {', '.join(x.name for x in ZOO)}")
    rows = []
    for row in _rows(chosen, arguments.jobs):
        rows.append(row)
        print(f"{row.specimen.name:<42}{row.engine:<6}{row.seconds:5.1f} s  {_result(row)}", flush=True)
    counts = Counter(row.verdict for row in rows)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in (EQUAL, REFUSED, FAILED)))
    if not arguments.only:
        arguments.write.parent.mkdir(exist_ok=True)
        arguments.write.write_text(_document(rows), encoding="utf-8")
    return 1 if counts[FAILED] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these models; writes no document")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--write", type=Path, default=DOCUMENT, help="where the table goes (default %(default)s)")
    return parser.parse_args()


def _rows(chosen: Sequence[Specimen], jobs: int) -> Iterator[Row]:
    """The rows in the order of the zoo, each as soon as it is known."""
    with tempfile.TemporaryDirectory() as folder:
        lengths = dict.fromkeys(each.max_length for each in chosen)
        packs = {length: write_pack(Path(folder) / f"pack-{length}", max_length=length) for length in lengths}
        examined = partial(_examined, Path(folder), packs)
        if jobs == 1:
            yield from map(examined, chosen)
            return
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            yield from pool.imap(examined, chosen)


def _examined(folder: Path, packs: dict[int | None, Path], specimen: Specimen) -> Row:
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        Path(os.devnull).open("w") as null,
        contextlib.redirect_stderr(null),
        contextlib.redirect_stdout(null),
    ):
        return examine(specimen, Path(own), packs[specimen.max_length])


def _result(row: Row) -> str:
    return row.verdict if not row.reason else f"{row.verdict}: {row.reason}"


def _document(rows: Sequence[Row]) -> str:
    counts = Counter(row.verdict for row in rows)
    lines = [
        "# Architectures",
        "",
        f"Written by `make architectures` with transformers {transformers.__version__} and torch {torch.__version__}. "
        f"{len(rows)} small random models: {counts[EQUAL]} are equal, {counts[REFUSED]} are refused by "
        f"`evomerge check`, {counts[FAILED]} are neither.",
        "",
        "Equal means: a search and the export of its best trial; every item and every request of the winner scores "
        "what lm-eval gives for the export, one request at a time; the exported weights have the bits of an "
        "independent merge of the stored tensors, none is missing; and the same candidate scored again after longer "
        "sequences has the same numbers to the bit. In bfloat16 and float16 scores are equal up to rounding.",
        "",
        "*Requests*: `tree` where they share their prefixes in the forward passes, `flat` where each is a sequence of "
        "its own.",
        "",
    ]
    for group in dict.fromkeys(row.specimen.group for row in rows):
        lines += [f"## {group}", "", "| model | class | dtype | requests | result |", "|---|---|---|---|---|"]
        lines += [_line(row) for row in rows if row.specimen.group == group]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row) -> str:
    specimen = row.specimen
    dtype = specimen.merged if specimen.stored == specimen.merged else f"{specimen.stored} → {specimen.merged}"
    result = _result(row).replace("|", "\\|")
    return f"| {specimen.name} | `{specimen.model_type}` | {dtype} | {row.engine or '–'} | {result} |"


if __name__ == "__main__":
    sys.exit(main())
