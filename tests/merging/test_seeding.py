"""Keyed randomness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge
from evomerge.seeding import derive


def test_derived_numbers_are_frozen():
    """Masks of stored recipes depend on them: a change of these numbers is a change of every DARE merge."""
    assert derive(0) == 0xD1A1DE6D4AF84C4C
    assert derive(0, 1, "model.layers.0.mlp.up_proj.weight") == 0x2D8D314E4663F92
    assert derive(-5, "a") == 0x5EEA77EF8AE7253F


def test_the_encoding_is_unambiguous():
    keys = [(1,), ("1",), (1, 1), (11,), ("a", "bc"), ("ab", "c"), ("abc",), (), ("",), ("", ""), (-1,), ("i1",)]
    assert len({derive(0, *key) for key in keys}) == len(keys)
    assert derive(1) != derive(0, 1)


def test_numbers_have_64_bits_and_any_text_and_integer_is_a_key():
    numbers = [derive(seed, "ключ", "\udcff", 10**40) for seed in range(200)]
    assert all(0 <= number < 2**64 for number in numbers)
    assert max(numbers) > 2**63
    assert len({number % 2**32 for number in numbers}) == 200


@pytest.mark.parametrize("key", [1.0, None, True, b"a"])
def test_other_types_are_refused(key):
    with pytest.raises(TypeError, match="integers or strings"):
        derive(0, key)


def test_n13_numbers_do_not_depend_on_the_hash_seed():
    code = "from evomerge.seeding import derive; print(derive(3, 'name', 7))"
    found = set()
    for hash_seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(Path(evomerge.__file__).parents[1]), "PYTHONHASHSEED": hash_seed}
        found.add(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=60))
    assert found == {f"{derive(3, 'name', 7)}\n"}
