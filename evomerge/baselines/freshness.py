"""Finds the stored baselines that are still valid: other settings, texts, budget or winner make a baseline stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.baselines.info import BASELINES
from evomerge.errors import InvalidInput
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.study.rows import Record
from evomerge.study.snapshot import SearchSnapshot


def build_key(baseline: BaselineSpec, spec: SearchSpec, standing: SearchSnapshot) -> str:
    """Digest of all that a baseline is built from: its name, form, settings, files and texts, the state of the search.

    Raises:
        InvalidInput: a calibration file, or that of the user's own merge, cannot be read.
    """
    content: dict[str, object] = {"name": baseline.name, "settings": baseline.settings}
    info = BASELINES[baseline.name]
    if info.form > 1:
        content["form"] = info.form
    if info.from_file and "recipe" in baseline.settings:
        file = str(baseline.settings["recipe"])
        content["settings"] = {**baseline.settings, "recipe": _digest_of(f"file of baseline {baseline.name!r}", file)}
    if info.built_from is not None:
        content[info.built_from] = standing.best if info.built_from == "best" else standing.trials
    if info.by_task:
        content["tasks"] = {expert.name: expert.calibration and expert.calibration.task for expert in spec.experts}
    if info.needs_texts:
        calibrations = {expert.name: expert.calibration for expert in spec.experts}
        content["calibration"] = {
            name: each and (each.task or _digest_of(f"calibration file of source {name!r}", str(each.file)), each.items)
            for name, each in calibrations.items()
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def current_baselines(rows: Iterable[Record], spec: SearchSpec, standing: SearchSnapshot) -> list[Record]:
    """The latest valid row of every baseline, in the order of `BASELINES`."""
    latest = {row.label: row for row in rows if row.made is not None and _is_fresh(row.made, row.label, spec, standing)}
    return [latest[name] for name in BASELINES if name in latest]


def left_out(failures: Mapping[tuple[str, str], str], spec: SearchSpec, standing: SearchSnapshot) -> dict[str, str]:
    """Baseline -> reason why it could not be built for the present spec.

    Args:
        failures: see `evomerge.study.row_failures.read_failures`.
    """
    return {name: reason for (name, made), reason in failures.items() if _is_fresh(made, name, spec, standing)}


def settings_of(name: str, spec: SearchSpec) -> BaselineSpec:
    """A baseline with its settings in the spec, or with the defaults."""
    return next((each for each in spec.chosen_baselines if each.name == name), BaselineSpec(name=name))


def _is_fresh(made: str, name: str, spec: SearchSpec, standing: SearchSnapshot) -> bool:
    try:
        return made == build_key(settings_of(name, spec), spec, standing)
    except InvalidInput:  # the files are not on this machine, where the study is only read
        return True


def _digest_of(what: str, file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidInput(f"{what}: {file!r} cannot be read: {error.strerror or error}") from error
