from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InvalidInput, OtherSpec
from evomerge.packs.pack import FieldSplit, HashSplit
from evomerge.packs.split import PARTS, check_split, content_hash, make_split, split_from_json, split_to_json

BY_HASH = HashSplit(by="hash", shares={"calibration": 0.1, "search": 0.4, "held_out": 0.5})
BY_FIELD = FieldSplit(by="field", field="part")


def documents(count: int) -> list[dict[str, Any]]:
    return [{"question": f"what is {number}?", "answer": number} for number in range(count)]


def test_the_shares_are_kept_about_and_every_document_has_one_part() -> None:
    split = make_split({"t": documents(2000)}, BY_HASH, seed=1)
    sizes = {part: len(split.parts[part]["t"]) for part in PARTS}
    assert sum(sizes.values()) == 2000
    assert 150 < sizes["calibration"] < 250
    assert 700 < sizes["search"] < 900


@given(st.permutations(range(40)), st.integers(min_value=0, max_value=2**63))
def test_the_part_and_order_of_a_document_follow_from_its_content_alone(order: list[int], seed: int) -> None:
    originals = documents(40)
    split = make_split({"t": originals}, BY_HASH, seed)
    moved = make_split({"t": [originals[item] for item in order]}, BY_HASH, seed)
    for part in PARTS:
        assert [order[item] for item in moved.parts[part]["t"]] == list(split.parts[part]["t"])
    assert moved.digests == split.digests


def test_n15_what_is_held_out_with_one_seed_is_held_out_with_all() -> None:
    splits = [make_split({"t": documents(200)}, BY_HASH, seed) for seed in (1, 2)]
    for part in PARTS:
        assert set(splits[0].parts[part]["t"]) == set(splits[1].parts[part]["t"])
    assert splits[0].parts["search"]["t"] != splits[1].parts["search"]["t"]


def test_n15_the_same_document_twice_lands_in_one_part() -> None:
    split = make_split({"t": documents(50) * 2, "u": documents(50)}, BY_HASH, seed=1)
    for part in PARTS:
        ids = set(split.parts[part]["t"])
        assert {item % 50 for item in ids} == set(split.parts[part]["u"])
        assert all((item + 50) % 100 in ids for item in ids)


@pytest.mark.parametrize("second", ["t", "u"])
def test_n15_a_field_that_puts_one_document_into_two_parts_is_refused(second: str) -> None:
    contents: dict[str, list[dict[str, Any]]] = {
        task: [{"q": f"{task}{number}", "part": part} for number, part in enumerate(["search", "held_out"])]
        for task in ("t", "u")
    }
    contents["t"].append({"q": "same", "part": "search"})
    contents[second].append({"q": "same", "part": "held_out"})
    with pytest.raises(InvalidInput, match=r"the same document stands in two parts: search \(task 't', document 2\)"):
        make_split(contents, BY_FIELD, seed=1)


def test_a_document_without_a_known_part_is_named() -> None:
    with pytest.raises(InvalidInput, match="task 't', document 1: field 'part' is 'serach'; it must be one of"):
        make_split({"t": [{"q": 1, "part": "search"}, {"q": 2, "part": "serach"}]}, BY_FIELD, seed=1)


@pytest.mark.parametrize("part", ["search", "held_out"])
def test_a_task_without_items_to_search_on_or_to_hold_out_is_refused(part: str) -> None:
    with pytest.raises(InvalidInput, match="task 't' has no"):
        make_split({"t": [{"q": number, "part": part} for number in range(5)]}, BY_FIELD, seed=1)


def test_n11_a_limit_samples_the_search_part() -> None:
    whole = make_split({"t": documents(200)}, BY_HASH, seed=1)
    limited = make_split({"t": documents(200)}, BY_HASH, seed=1, limits={"t": 10})
    assert limited.parts["search"]["t"] == whole.parts["search"]["t"][:10]
    assert list(limited.parts["search"]["t"]) != sorted(whole.parts["search"]["t"])[:10]
    assert limited.parts["held_out"] == whole.parts["held_out"]


def test_n13_the_split_does_not_depend_on_the_hash_seed_of_python() -> None:
    code = (
        "from evomerge.evaluation import make_split, split_to_json\n"
        "from evomerge.packs.pack import HashSplit\n"
        "rule = HashSplit(by='hash', shares={'search': 0.5, 'held_out': 0.5})\n"
        "print(split_to_json(make_split({'t': [{'a': n, 'b': str(n)} for n in range(40)]}, rule, 1)))\n"
    )
    root = str(Path(__file__).parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


def test_a_split_survives_storage() -> None:
    split = make_split({"t": documents(30), "ü": documents(40)}, BY_HASH, seed=1)
    assert split_from_json(split_to_json(split)) == split


def test_changed_added_or_missing_documents_are_noticed() -> None:
    contents = documents(50)
    split = make_split({"t": contents}, BY_HASH, seed=1)
    check_split(split, {"t": contents}, BY_HASH)
    check_split(split, {"t": [*contents, {"question": "new", "answer": 1}]}, BY_HASH)
    held_out = split.parts["held_out"]["t"][0]
    changed = [{**document, "answer": -1} if item == held_out else document for item, document in enumerate(contents)]
    with pytest.raises(OtherSpec, match=r"the documents of t \(held_out\) are not those"):
        check_split(split, {"t": changed}, BY_HASH)
    with pytest.raises(OtherSpec):
        check_split(split, {"t": contents[:-1]}, BY_HASH)
    with pytest.raises(OtherSpec, match="belong to the tasks"):
        check_split(split, {"u": contents}, BY_HASH)


def test_documents_with_the_fields_that_make_an_item_in_common_land_in_one_part() -> None:
    contents = {name: [{"id": f"{name}{at}", "question": f"what is {at % 50}?"} for at in range(200)] for name in "tu"}
    shares = {"search": 0.5, "held_out": 0.5}
    parts = make_split(contents, HashSplit(by="hash", shares=shares, fields=("question",)), seed=1).parts
    asked = {part: {contents[task][item]["question"] for task in "tu" for item in parts[part][task]} for part in shares}
    assert not asked["search"] & asked["held_out"]


def test_a_changed_document_is_noticed_in_any_field() -> None:
    rule = HashSplit(by="hash", shares={"search": 0.5, "held_out": 0.5}, fields=("question",))
    contents = documents(50)
    split = make_split({"t": contents}, rule, seed=1)
    check_split(split, {"t": contents}, rule)
    with pytest.raises(OtherSpec):
        check_split(split, {"t": [{**document, "answer": -1} for document in contents]}, rule)


def test_a_document_without_a_field_that_makes_an_item_is_refused() -> None:
    rule = HashSplit(by="hash", shares={"search": 0.5, "held_out": 0.5}, fields=("questoin", "answer"))
    with pytest.raises(InvalidInput, match=r"document 0: it has no questoin, but .*; it has answer, question"):
        make_split({"t": documents(5)}, rule, seed=1)


def test_the_content_hash_ignores_the_order_of_keys_and_the_field_of_the_part_only() -> None:
    assert content_hash({"a": 1, "b": "ü"}) == content_hash({"b": "ü", "a": 1})
    assert content_hash({"a": 1, "part": "search"}, "part") == content_hash({"a": 1, "part": "held_out"}, "part")
    assert content_hash({"a": 1}) != content_hash({"a": "1"})
    assert content_hash({"a": b"x"}) == content_hash({"a": b"x"})
    with pytest.raises(InvalidInput, match="holds a object"):
        content_hash({"a": object()})
