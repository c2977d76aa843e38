"""Which rows of the baselines hold for a spec as it is now: other settings, texts, budget or winner make others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.errors import InvalidInput
from evomerge.spec import BASELINES, TRAINED, BaselineSpec, SearchSpec
from evomerge.study.records import Record
from evomerge.study.standing import Standing


def made_key(baseline: BaselineSpec, spec: SearchSpec, standing: Standing) -> str:
    """Identifies how a baseline is made: its name, its settings, and what else it follows from.

    Raises:
        InvalidInput: a calibration file cannot be read.
    """
    content: dict[str, object] = {"name": baseline.name, "settings": baseline.settings}
    if baseline.name == "dam-from-best":
        content["best"] = standing.best
    if baseline.name == "random-search":
        content["trials"] = standing.trials
    if baseline.name in TRAINED:
        calibrations = {expert.name: expert.calibration for expert in spec.experts}
        content["calibration"] = {
            name: each and (each.task or _digest_of(name, str(each.file)), each.items)
            for name, each in calibrations.items()
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def current_baselines(rows: Iterable[Record], spec: SearchSpec, standing: Standing) -> list[Record]:
    """The latest row of every baseline that was made as the spec says now, in the order of `BASELINES`."""
    latest = {row.label: row for row in rows if row.made is not None and _holds(row.made, row.label, spec, standing)}
    return [latest[name] for name in BASELINES if name in latest]


def left_out(failures: Mapping[tuple[str, str], str], spec: SearchSpec, standing: Standing) -> dict[str, str]:
    """Baseline -> why it could not be made as the spec says now.

    Args:
        failures: see `evomerge.study.records.read_failures`.
    """
    return {name: reason for (name, made), reason in failures.items() if _holds(made, name, spec, standing)}


def settings_of(name: str, spec: SearchSpec) -> BaselineSpec:
    """A baseline with the settings that the spec gives it, if it does."""
    return next((each for each in spec.chosen_baselines if each.name == name), BaselineSpec(name=name))


def _holds(made: str, name: str, spec: SearchSpec, standing: Standing) -> bool:
    try:
        return made == made_key(settings_of(name, spec), spec, standing)
    except InvalidInput:  # the texts are not on this machine, where the study is only read
        return True


def _digest_of(source: str, file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(f"calibration file {file!r} of source {source!r} cannot be read: {reason}") from error
