"""Divides items into the calibration, search and held-out parts, in a seeded order, and stores the division.

The part of an item never depends on the seed: a document that is held out in one study is held out in all of them. The
order within a part is a shuffle keyed by the seed and the document's content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from evomerge.errors import InvalidInput, OtherSpec
from evomerge.forms import parse_json, reading
from evomerge.packs.items import Part, Split
from evomerge.packs.pack import FieldSplit, HashSplit
from evomerge.seeding import derive

PARTS: tuple[Part, ...] = get_args(Part)
_HASH_RANGE = 2.0**64


def content_hash(document: Mapping[str, Any], without: str | None = None) -> str:
    """Identity of an item: SHA-256 of its content as canonical JSON, without the field that only names its part."""
    content = {key: value for key, value in document.items() if key != without}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def item_key(document: Mapping[str, Any], rule: FieldSplit | HashSplit) -> str:
    """The digest of what may not stand in two parts: the content, or the fields that the rule names."""
    if isinstance(rule, HashSplit) and rule.fields is not None:
        return content_hash({name: document.get(name) for name in rule.fields})
    return content_hash(document, _field_of(rule))


def make_split(
    documents: Mapping[str, Sequence[Mapping[str, Any]]],
    rule: FieldSplit | HashSplit,
    seed: int,
    limits: Mapping[str, int | None] | None = None,
) -> Split:
    """Divide the documents of every task.

    Args:
        documents: task -> its documents, in the task's own order; an item's id is its position there.
        rule: how the part of a document is found.
        seed: key of the order within a part, and with it of the sample that a limit takes.
        limits: task -> how many items of the search part are used.

    Raises:
        InvalidInput: a document names no part or lacks a field of the rule, one content stands in two parts, or a task
            has nothing to search on or to hold out.
    """
    hashes = content_hashes(documents, rule)
    parts: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in PARTS}
    homes: dict[str, tuple[str, str, int]] = {}
    for task, contents in documents.items():
        ids: dict[str, list[int]] = {part: [] for part in PARTS}
        for item, document in enumerate(contents):
            where = f"task {task!r}, document {item}"
            _refuse_lacking(document, rule, where)
            key = item_key(document, rule)
            part = _part(document, key, rule, where)
            _refuse_two_homes(homes.setdefault(key, (part, task, item)), (part, task, item))
            ids[part].append(item)
        limit = (limits or {}).get(task)
        for part in PARTS:
            shuffled = sorted(ids[part], key=lambda item: (derive(seed, "item order", hashes[task][item]), item))
            parts[part][task] = tuple(shuffled[:limit] if part == "search" else shuffled)
        _refuse_empty(task, parts, len(contents))
    return Split(parts, _digests(parts, hashes))


def content_hashes(
    documents: Mapping[str, Sequence[Mapping[str, Any]]], rule: FieldSplit | HashSplit
) -> dict[str, list[str]]:
    """Task -> content hash of each of its documents."""
    without = _field_of(rule)
    return {task: [content_hash(document, without) for document in contents] for task, contents in documents.items()}


def check_split(
    split: Split, documents: Mapping[str, Sequence[Mapping[str, Any]]], rule: FieldSplit | HashSplit
) -> None:
    """Refuse to go on when the data is no longer what the study's split was made from.

    Raises:
        OtherSpec: names the tasks and parts whose items changed.
    """
    hashes = content_hashes(documents, rule)
    tasks = {task for by_task in split.parts.values() for task in by_task}
    if tasks != set(hashes):
        raise OtherSpec(
            f"the study's items belong to the tasks {sorted(tasks)}, but the evaluator has {sorted(hashes)}; "
            f"restore the evaluator, or start a study with another name"
        )
    changed = [
        f"{task} ({part})"
        for part, by_task in split.parts.items()
        for task, ids in by_task.items()
        if max(ids, default=-1) >= len(hashes[task]) or _digest(ids, hashes[task]) != split.digests[part][task]
    ]
    if changed:
        raise OtherSpec(
            f"the documents of {', '.join(changed)} are not those that the study was made with; restore the data, or "
            f"start a study with another name"
        )


def split_to_json(split: Split) -> str:
    """The split as one line of JSON, as it stands in the study."""
    parts = {part: {task: list(ids) for task, ids in by_task.items()} for part, by_task in split.parts.items()}
    digests = {part: dict(by_task) for part, by_task in split.digests.items()}
    return json.dumps({"parts": parts, "digests": digests}, separators=(",", ":"), ensure_ascii=False)


def split_from_json(text: str) -> Split:
    """The inverse of `split_to_json`.

    Raises:
        InvalidInput: it did not write this.
    """
    with reading("the split of the items in the study"):
        content = parse_json(text, Split)
        by_part = content["parts"].items()
        parts = {part: {task: tuple(ids) for task, ids in by_task.items()} for part, by_task in by_part}
        return Split(parts, content["digests"])


def _field_of(rule: FieldSplit | HashSplit) -> str | None:
    """The field that only names the part."""
    return rule.field if isinstance(rule, FieldSplit) else None


def _refuse_lacking(document: Mapping[str, Any], rule: FieldSplit | HashSplit, where: str) -> None:
    named = (rule.fields or ()) if isinstance(rule, HashSplit) else ()
    lacking = [name for name in named if name not in document]
    if lacking:
        raise InvalidInput(
            f"{where}: it has no {', '.join(lacking)}, but the split names {', '.join(named)} as the fields that make "
            f"an item; it has {', '.join(sorted(document))}"
        )


def _part(document: Mapping[str, Any], digest: str, rule: FieldSplit | HashSplit, where: str) -> Part:
    if isinstance(rule, FieldSplit):
        named: Any = document.get(rule.field)
        if named not in PARTS:
            raise InvalidInput(f"{where}: field {rule.field!r} is {named!r}; it must be one of {', '.join(PARTS)}")
        return PARTS[PARTS.index(named)]
    position = int(digest[:16], 16) / _HASH_RANGE
    for part in PARTS:
        position -= rule.shares.get(part, 0.0)
        if position < 0:
            return part
    return "held_out"  # shares that add up to a hair less than 1


def _refuse_two_homes(first: tuple[str, str, int], second: tuple[str, str, int]) -> None:
    if first[0] != second[0]:
        (part, task, item), (other_part, other_task, other_item) = first, second
        raise InvalidInput(
            f"the same document stands in two parts: {part} (task {task!r}, document {item}) and {other_part} (task "
            f"{other_task!r}, document {other_item}); an item that is searched on cannot be held out: remove one"
        )


def _refuse_empty(task: str, parts: Mapping[str, Mapping[str, tuple[int, ...]]], documents: int) -> None:
    for part in ("search", "held_out"):
        if not parts[part][task]:
            raise InvalidInput(
                f"task {task!r} has no {part} items among its {documents} documents; a search needs items to score on "
                f"and others that no trial has seen"
            )


def _digests(
    parts: Mapping[str, Mapping[str, tuple[int, ...]]], hashes: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
    return {part: {task: _digest(ids, hashes[task]) for task, ids in tasks.items()} for part, tasks in parts.items()}


def _digest(ids: Iterable[int], hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes[item] for item in ids).encode()).hexdigest()[:32]


def _plain(value: Any) -> str:
    """JSON form of values that have none: dates, bytes, numbers of numpy."""
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if hasattr(value, "item"):
        return repr(value.item())
    raise InvalidInput(f"a document holds a {type(value).__name__}; documents are text, numbers, lists and mappings")
