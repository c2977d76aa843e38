"""The genome of a configuration as a search space, with a remark on every line of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evomerge.genomes.genome_settings import EVOLUTIONARY_PARAMETERS, EvolutionarySettings
from evomerge.mergekit_evolve.evolve_file import EvolveFile, Remark
from evomerge.methods import METHODS, OptionValue

LIMIT = float(EvolutionarySettings.model_fields["limit"].default)

_NORMALISED = frozenset({"linear", "ties", "dare_ties"})  # without `normalize` in the file
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def space_content(file: EvolveFile, name: str, *, merges_base: bool) -> tuple[dict[str, Any], tuple[Remark, ...]]:
    """The content of space.yaml, and remarks on the lines of the genome but its models.

    Args:
        merges_base: whether the base of the search is one of the models that are merged.
    """
    settings: dict[str, Any] = {"method": file.method, "layer_granularity": file.layer_granularity}
    if file.filters:
        settings["filters"] = list(file.filters)
    settings |= {key: True for key in ("allow_negative_weights", "smooth") if getattr(file, key)}
    if options := _options(file):
        settings["options"] = options
    content = {
        "name": name,
        "description": f"The genome of {file.path.name}, a configuration of mergekit-evolve.",
        "semantics": "mergekit",
        **({"sources": "all"} if merges_base else {}),
        "genome": {"evolutionary": settings},
    }
    return content, tuple(_remarks(file, options))


def _options(file: EvolveFile) -> dict[str, OptionValue]:
    """The option of our method that `normalize` chooses, with mergekit-evolve's own defaults."""
    counterpart = METHODS[file.method].mergekit
    if counterpart is None or "normalize" not in counterpart.switches:
        return {}
    option, off = counterpart.switches["normalize"]
    if not _normalised(file):
        return {option: off}
    choices = (counterpart.semantics[option], *counterpart.expressed[option])
    return {option: next(choice for choice in choices if choice != off)}


def _normalised(file: EvolveFile) -> bool:
    return file.method in _NORMALISED if file.normalize is None else file.normalize


def _remarks(file: EvolveFile, options: dict[str, OptionValue]) -> Iterator[Remark]:
    parameters = " and ".join(EVOLUTIONARY_PARAMETERS[file.method])
    yield _remark(file, "merge_method", "same", f"{file.method}, one {parameters} per model, group and part")
    yield _remark(
        file,
        "layer_granularity",
        "same",
        f"{file.layer_granularity} layers form a group" if file.layer_granularity else "all layers are one group",
    )
    yield from _of_switches(file, options)
    yield from _of_filters(file)
    yield _default(f"every gene is in [-{LIMIT:g}, {LIMIT:g}]; mergekit's genes have no bounds")
    yield _default("merges are added in float32 and rounded once; mergekit adds in bfloat16")
    if file.method == "dare_ties":
        yield _default("random masks follow from seed, source, tensor and element; mergekit's from torch's generator")


def _of_switches(file: EvolveFile, options: dict[str, OptionValue]) -> Iterator[Remark]:
    if options:
        (option, value), *_ = options.items()
        yield _remark(file, "normalize", "same", f"normalize: {_word(_normalised(file))} is {option}: {_word(value)}")
    elif file.normalize is not None:
        yield _remark(file, "normalize", "left out", f"{file.method} has no sum of weights to divide by")
    if file.method == "slerp":
        if file.allow_negative_weights:
            yield _remark(file, "allow_negative_weights", "left out", "scores of slerp are never folded")
    elif file.line("genome", "allow_negative_weights") is not None:
        folded = "weights may be negative" if file.allow_negative_weights else "weights are absolute values of genes"
        yield _remark(file, "allow_negative_weights", "same", folded)
    if file.smooth:
        yield _remark(file, "smooth", "same", "values are interpolated over the layers between those of the groups")
        behind = "behind the layers values are those of the last layer; mergekit has those of the first"
        yield _remark(file, "smooth", "differs", behind)


def _of_filters(file: EvolveFile) -> Iterator[Remark]:
    if not file.filters:
        return
    parts = ", ".join(file.filters)
    yield _remark(file, "filters", "same", f"tensors of layers form the parts {parts} and the rest")
    for each in file.filters:
        if outside := [name for name in _OUTSIDE if each in name]:
            yield _remark(
                file,
                "filters",
                "differs",
                f"{each} is also in {' and '.join(outside)}; what is outside of the layers is in the rest here",
            )


def _remark(file: EvolveFile, key: str, kind: Any, text: str) -> Remark:
    return Remark(kind=kind, line=file.line("genome", key), text=text)


def _default(text: str) -> Remark:
    return Remark(kind="differs", line=None, text=text)


def _word(value: OptionValue) -> str:
    return str(value).lower()
