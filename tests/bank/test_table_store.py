"""Threshold tables on disk: found again by content, verified, bounded, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evomerge.passes.magnitude_sorting import SHORT
from evomerge.passes.table_store import TableStore
from evomerge.passes.threshold_tables import Contents, ThresholdTables

ELEMENTS = SHORT + 4_000
SCOPES = (("a",), ("a", "b"), ("c",))
RANKS = range(1, ELEMENTS, 999)


def models(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(ELEMENTS, generator=generator) for name in "abc"} for _ in range(3)]


def tables_in(folder, *, seed=0, fingerprints=("first", "second"), limit=1 << 30):
    base, *sources = models(seed)
    return ThresholdTables(base, sources, Contents(base="base", sources=fingerprints, store=TableStore(folder, limit)))


def thresholds(tables):
    return [tables.kth_magnitude(source, scope, k) for source in (0, 1) for scope in SCOPES for k in RANKS]


def expected(seed=0):
    base, *sources = models(seed)
    return thresholds(ThresholdTables(base, sources))


def test_what_one_worker_made_another_one_reads(tmp_path):
    made = tables_in(tmp_path)
    assert thresholds(made) == expected()
    made.save()
    assert thresholds(made) == expected()  # now from the file
    assert len(list(tmp_path.iterdir())) == 2
    assert thresholds(tables_in(tmp_path, seed=1)) == expected()  # the weights are not looked at: the content is known
    assert len(list(tmp_path.iterdir())) == 2


def test_tables_belong_to_the_content_and_not_to_the_position_of_a_source(tmp_path):
    made = tables_in(tmp_path)
    thresholds(made)
    made.save()
    base, first, second = models()
    contents = Contents(base="base", sources=("second", "first"), store=TableStore(tmp_path))
    turned = ThresholdTables(base, [second, first], contents)
    assert [turned.kth_magnitude(1, ("a",), k) for k in RANKS] == [made.kth_magnitude(0, ("a",), k) for k in RANKS]
    assert thresholds(tables_in(tmp_path, seed=1, fingerprints=("third", "fourth"))) == expected(seed=1)


def test_a_worker_that_runs_already_finds_what_another_one_saves(tmp_path):
    waiting = tables_in(tmp_path)
    assert waiting.kth_magnitude(0, ("a",), 5) > 0
    made = tables_in(tmp_path)
    thresholds(made)
    made.save()
    for model in waiting._sources:
        for tensor in model.values():
            tensor.fill_(7.0)
    assert [waiting.kth_magnitude(0, ("c",), k) for k in RANKS] == [made.kth_magnitude(0, ("c",), k) for k in RANKS]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    made = tables_in(tmp_path)
    thresholds(made)
    made.save()
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes({"flipped": content, "cut": content[:1000], "empty": b"", "other": b"x" * 5000}[damage])
    again = tables_in(tmp_path)
    assert thresholds(again) == expected()
    again.save()
    assert thresholds(tables_in(tmp_path, seed=1)) == expected()


def test_the_files_used_longest_ago_are_removed(tmp_path):
    tables = tables_in(tmp_path)
    tables.kth_magnitude(0, ("a",), 1)
    tables.save()
    (first,) = tmp_path.iterdir()
    os.utime(first, (1, 1))
    limited = tables_in(tmp_path, limit=first.stat().st_size * 3 // 2)
    limited.kth_magnitude(1, ("a",), 1)
    limited.save()
    (second,) = tmp_path.iterdir()
    assert second != first
    assert thresholds(tables) == expected()  # of which the file is gone


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path):
    (tmp_path / "file").write_text("in the way")
    tables = tables_in(tmp_path / "file" / "folder")
    assert thresholds(tables) == expected()
    tables.save()
    assert thresholds(tables) == expected()


PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from test_table_store import expected, tables_in, thresholds
tables = tables_in(Path(sys.argv[2]))
assert thresholds(tables) == expected()
tables.save()
assert thresholds(tables) == expected()
"""


def test_two_workers_at_once_make_the_same_files(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(tmp_path)]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert thresholds(tables_in(tmp_path, seed=1)) == expected()
    assert not list(tmp_path.glob(".*"))
