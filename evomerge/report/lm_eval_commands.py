"""Reproduction of the leaderboard by others: the exact `lm_eval` command of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.bank.device_kind import default_device
from evomerge.checkpoints.chat_date import DATE
from evomerge.checkpoints.files_beside_weights import CONFIG, alike_beside_weights
from evomerge.checkpoints.location import find_directory, is_hub_id
from evomerge.errors import EvomergeError, InvalidInput, OtherSpec
from evomerge.evaluation import known_evaluators, known_packs, split_from_json
from evomerge.evaluation.factory import build_evaluator
from evomerge.export import export_command
from evomerge.leaderboard import Line
from evomerge.messages import first_line
from evomerge.packs.items import ItemBlock
from evomerge.report.paths import exported_digest, exports, models_folder, run_folder
from evomerge.spec import SearchSpec
from evomerge.storage import attributes
from evomerge.study.identity import read_identity
from evomerge.study.stored_search import StoredSearch

if TYPE_CHECKING:
    from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator


NO_COMMAND = (
    "the model keeps state from one request to the next (as dynamic NTK positions do beyond the original length), so "
    "that lm-eval's scores depend on the order of the requests; here each request begins anew"
)
OTHER_DATE = (
    "the chat template of the base writes today's date into every prompt, and lm-eval's prompts with it; here that is "
    f"always {DATE}"
)
NO_EVALUATOR = "the evaluator {!r} is not on this machine: neither a folder nor a class that this process knows"
SEVERAL_MODELS = (
    "the row is several models, lm-eval scores one: `evomerge export --trial NAME --task TASK` writes that of a task"
)


def with_commands(stored: StoredSearch, lines: Sequence[Line], file: Path | None = None) -> list[Line]:
    """The lines with the command that repeats their held-out scores (search scores where nothing was held out yet).

    A merge has to be exported before lm-eval can read it, and so has an expert that differs from the base in more than
    its weights; `prepare` is the command for that, None where the run's folder has an export of that recipe.

    Evaluators other than packs have no such command; packs that are not on this machine, models whose scores in lm-eval
    depend on the order of the requests, and chats with today's date have `no_command`. So have rows for which something
    is missing by now or has been changed. Nothing is downloaded.

    Args:
        file: the search.yaml that names the storage, see `command_line`.
    """
    name = stored.spec.evaluator.name
    if name in known_evaluators():
        return list(lines)
    if not Path(name).is_dir() and name not in known_packs():
        return [replace(line, no_command=NO_EVALUATOR.format(name)) for line in lines]
    if stored.study.user_attrs.get(attributes.NO_HARNESS_SCORES):
        return [replace(line, no_command=NO_COMMAND) for line in lines]
    try:
        evaluator = _evaluator(stored)
        if evaluator.dated:
            return [replace(line, no_command=OTHER_DATE) for line in lines]
        _check_pack(stored, evaluator)
        samples = _write_samples(stored, evaluator)
        # An export as an adapter has no config: lm-eval would need to be told of its base.
        whole = [directory for directory in exports(stored) if (directory / CONFIG).is_file()]
    except (EvomergeError, OSError) as error:  # the stored numbers are there all the same
        return [replace(line, no_command=first_line(error)) for line in lines]
    exported = {exported_digest(directory): directory for directory in whole}
    return [_with_command(line, stored, evaluator, samples=samples, exported=exported, file=file) for line in lines]


def _check_pack(stored: StoredSearch, evaluator: HarnessEvaluator) -> None:
    """Refuse a pack that asks other questions by now; its documents have been compared before.

    Raises:
        OtherSpec: it does.
    """
    made_with = read_identity(stored.study).identity["evaluator"]
    if not stored.spec.evaluator.settings and evaluator.fingerprint != made_with:  # settings are those of an engine
        raise OtherSpec(
            f"the evaluator {stored.spec.evaluator.name!r} is not the one that the study was made with; restore its "
            "files and the release of lm-eval"
        )


def _write_samples(stored: StoredSearch, evaluator: HarnessEvaluator) -> dict[str, Path]:
    """Write the item ids of both parts into the run's folder: part -> file."""
    from evomerge.evaluation.lm_eval.reproduction import write_samples

    samples: dict[str, Path] = {}
    folder = run_folder(stored)
    folder.mkdir(parents=True, exist_ok=True)  # of a study on a server it may not be there
    for part in ("search", "held_out"):
        samples[part] = folder / f"{stored.spec.name}-{part}-items.json"
        write_samples(evaluator.split, ItemBlock(part), samples[part])
    return samples


def _with_command(
    line: Line,
    stored: StoredSearch,
    evaluator: HarnessEvaluator,
    *,
    samples: dict[str, Path],
    exported: dict[str | None, Path],
    file: Path | None,
) -> Line:
    from evomerge.evaluation.lm_eval.reproduction import lm_eval_line

    if line.models:
        return replace(line, no_command=SEVERAL_MODELS)
    part = ItemBlock("held_out") if line.held_out else ItemBlock("search")
    try:
        model, prepare = _model(stored, line, exported, file)
        command = lm_eval_line(
            evaluator,
            model,
            samples[part.part],
            part,
            dtype=stored.spec.dtype,
            one_by_one=bool(stored.study.user_attrs.get(attributes.ONE_BY_ONE)),
        )
    except (EvomergeError, OSError) as error:
        return replace(line, no_command=first_line(error))
    return replace(line, command=command, prepare=prepare)


def _model(
    stored: StoredSearch, line: Line, exported: dict[str | None, Path], file: Path | None
) -> tuple[str, str | None]:
    """Location of the row's model, and the command that exports it there if it is missing.

    Raises:
        InvalidInput: the export would read a source whose folder is gone.
    """
    own = _own_folder(stored.spec, line.label) if line.kind == "source" else None
    if own is not None:
        return str(own), None
    if line.recipe in exported:
        return str(exported[line.recipe]), None
    for source in stored.spec.sources:
        if not is_hub_id(source.ref.location):  # the export downloads those
            find_directory(source.ref)
    which = line.label if line.trial is None else str(line.trial)
    out = models_folder(stored) / f"{stored.spec.name}-{line.label.replace(' ', '-')}"
    return str(out), export_command(stored, which, out, file)


def _own_folder(spec: SearchSpec, label: str) -> Path | None:
    """The folder of a source, None where lm-eval would score in it another model than was scored here.

    An expert was scored as a merge is: with the base's config, tokenizer, templates and generation settings.
    """
    base = find_directory(spec.base.ref, allow=spec.allow, download=False)
    if label == spec.base.name:
        return base
    ref = next(source.ref for source in spec.sources if source.name == label)
    try:
        folder = find_directory(ref, allow=spec.allow, download=False)
    except InvalidInput:  # an export of it may be there, or can be made
        return None
    return folder if ref.missing is None and alike_beside_weights(base, folder) else None


def _evaluator(stored: StoredSearch) -> HarnessEvaluator:
    from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator

    spec, identity = stored.spec, read_identity(stored.study)
    base = find_directory(spec.base.ref, allow=spec.allow, download=False)
    evaluator = build_evaluator(
        spec.evaluator.name,
        base=replace(spec.base.ref, location=str(base), revision=None),
        seed=spec.seed,
        split=split_from_json(identity.split),
        batch_size=identity.batch_size,
        allow=spec.allow,
        device=default_device(),
    )
    if not isinstance(evaluator, HarnessEvaluator):
        raise TypeError(f"the pack {spec.evaluator.name!r} was built as {type(evaluator).__name__}")
    return evaluator
