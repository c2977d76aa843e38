"""`evomerge check`: facts and warnings that are known before a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.text import Text

from evomerge.bank.placement import Placement
from evomerge.baselines.baseline_plans import candidates, check_baseline
from evomerge.baselines.info import BASELINES
from evomerge.baselines.planned_training import planned_training
from evomerge.cluster import gpus_of_each, worker_count, workers_share
from evomerge.evaluation import code_files, known_evaluators, load_pack
from evomerge.evaluation.evaluator import ModelEvaluator
from evomerge.messages import counted, duration, in_bytes, some
from evomerge.object_store.artifact_folder import ArtifactFolder
from evomerge.objective import task_weights
from evomerge.opening.capacity import memory_of, placement_of, trained_weights
from evomerge.opening.disk import disk_warnings, planned_writing
from evomerge.opening.inputs import Inputs
from evomerge.opening.measurements import all_measurements, measured_sizes
from evomerge.opening.open_study import build_search_sampler
from evomerge.opening.readiness import check_model, check_requests
from evomerge.opening.unit_moves import moves_sentence, unit_moves
from evomerge.recipe import Recipe
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.search.ingredients import check_recipe_file
from evomerge.search.warm_start import check_warm_start, has_begun
from evomerge.source_divergence import source_divergence
from evomerge.source_figures import source_figures
from evomerge.source_licenses import license_document, license_lines
from evomerge.spaces.bound import BoundSpace
from evomerge.storage import attributes
from evomerge.study.status import status_of
from evomerge.study.stored_search import NoStudy, artifacts_folder, looking_at
from evomerge.telemetry.tracking import check_trackers
from evomerge.verdict.looks import share
from evomerge.verdict.verdict import ALPHA

SCHEMA = 1
MANY_DIMENSIONS = 30
RARE_PATHS = 0.5  # share of paths within the budget of depth, below which a search should learn what is too long
TRIALS_PER_DIMENSION = 10
FEW_ITEMS = 100  # held-out ones, below which hardly any lead can be told
FEW_ITEMS_OF_TASK = 30  # below which the spread of a task's own differences is not known


def preflight(inputs: Inputs) -> dict[str, Any]:
    """Validate a spec, run its base on made-up tokens, and predict cost and memory of a run.

    Raises:
        InvalidInput: `evomerge run` would fail.
    """
    spec, space = inputs.spec, inputs.space
    check_trackers(spec.track)
    build_search_sampler(inputs, workers=1)
    ArtifactFolder(artifacts_folder(spec)).check()
    placement = _placement(inputs)
    task_weights(spec.objective, inputs.evaluator.weights)
    for baseline in spec.chosen_baselines:
        check_baseline(baseline, spec, inputs.evaluator.weights)
    check_warm_start(inputs)
    if not has_begun(spec):
        check_recipe_file(inputs)
    statistics, weights = _statistics(inputs), trained_weights(inputs)
    unmeant = check_requests(inputs)
    untried = check_model(inputs)
    moves = unit_moves(inputs)
    files = _file_bytes(statistics, worker_count(spec.workers, None)) + weights.file + weights.checkpoint
    writes = planned_writing(inputs, items=sum(_items(inputs)["search"].values()), files=files, shared=placement.shared)
    return {
        "schema": SCHEMA,
        "name": spec.name,
        "sources": [_source(inputs, index) for index in range(len(inputs.refs))],
        "licenses": license_document((inputs.base, *inputs.experts)),
        "tensors": _tensors(inputs),
        "space": {
            "name": spec.search_space.name,
            "dimensions": space.dimensions,
            "active_dimensions": space.active_dimensions,
            "groups": [{"label": group.label or "all", "tensors": len(group.tensors)} for group in space.groups],
            "centre": _start(space),
            **({"merges": list(space.labels)} if isinstance(space, RecipeSpace) else {}),
            **({"longest_path": space.paths.max_layers} if space.paths is not None else {}),
        },
        "evaluator": {"name": spec.evaluator.name, "items": _items(inputs), "code": _code(inputs)},
        "budget": {"trials": spec.budget.trials, "hours": spec.budget.hours},
        "task_vectors": source_figures(inputs),
        "divergence": source_divergence(inputs),
        "placement": placement.to_data(),
        "alignment": None if moves is None else {"moved": moves, "says": moves_sentence(moves)},
        "statistics": statistics,
        "cost": {
            **_cost(inputs, placement),
            "disk_bytes": sum(each.bytes for each in writes),
            "writes": [asdict(each) for each in writes],
            "training": _training(inputs),
            "seconds_left": _seconds_left(inputs),
        },
        "warnings": [
            *inputs.warnings,
            *(inputs.own_merge.notes if inputs.own_merge is not None else ()),
            *([untried] if untried else []),
            *unmeant,
            *_budget_warnings(inputs),
            *_item_warnings(inputs),
            *_rest_warnings(inputs),
            *disk_warnings(writes),
        ],
    }


def preflight_text(document: dict[str, Any]) -> Text:
    """The same for a person."""
    text = Text()
    text.append(f"{document['name']}: ready to run\n", style="bold green")
    for source in document["sources"]:
        text.append(f"  source {source['name']}: {source['location']} ({source['fingerprint'][:12]})\n")
    for line, style in license_lines(document["licenses"]):
        text.append(f"{line}\n", style=style)
    tensors, space = document["tensors"], document["space"]
    parts = ", ".join(f"{count} {part}" for part, count in tensors["parts"].items())
    text.append(f"  model: {tensors['parameters']:,} parameters, {counted(tensors['layers'], 'layer')}, {parts}\n")
    part = f" ({space['active_dimensions']} at a time)" if space["active_dimensions"] < space["dimensions"] else ""
    groups = counted(len(space["groups"]), "group")
    text.append(f"  space {space['name']}: {counted(space['dimensions'], 'dimension')}{part}, {groups}\n")
    if "longest_path" in space:
        text.append(f"    paths of up to {counted(space['longest_path'], 'layer')}\n")
    for group in space["groups"]:
        text.append(f"    {group['label']}: {counted(group['tensors'], 'tensor')}\n")
    text.append(f"  {'starts at' if 'merges' in space else 'centre of the box'}: {space['centre']}\n")
    for label, row in document["task_vectors"]["groups"].items():
        text.append(f"  task vectors, {label}: {_task_vectors(row)}\n")
    for sentence in (*document["task_vectors"]["says"], *document["divergence"]["says"]):
        text.append(f"    {sentence}\n")
    items = "; ".join(f"{part} {sum(counts.values())}" for part, counts in document["evaluator"]["items"].items())
    text.append(f"  evaluator {document['evaluator']['name']}: items: {items}\n")
    for path, digest in document["evaluator"]["code"].items():
        text.append(f"    runs code: {path} ({digest[:12]})\n", style="yellow")
    cost = document["cost"]
    text.append(
        f"  {counted(document['budget']['trials'], 'trial')} on {counted(cost['workers'], 'worker')}, "
        f"{counted(cost['search_items'], 'item')} scored; "
        f"sources and baselines: {cost['baseline_items']:,}; held-out: {cost['held_out_items']:,}\n"
        f"  {document['placement']['says']}; disk {in_bytes(cost['disk_bytes'])}\n"
    )
    for each in cost["writes"]:
        text.append(
            f"    {each['what']}: {in_bytes(each['bytes'])} to {each['folder']} ({in_bytes(each['free'])} free)\n"
        )
    if document["alignment"]:
        text.append(f"  {document['alignment']['says']}\n")
    for name, planned in cost["training"].items():
        text.append(
            f"  {name}: {counted(planned['steps'], 'step')}, {planned['gradient_tokens']:,} tokens with gradients and "
            f"{planned['forward_tokens']:,} without\n"
        )
    for measured in document["statistics"]:
        text.append(
            f"  {measured['kind']} of {measured['source']}: {counted(measured['texts'], 'text')}, "
            f"{measured['tokens']:,} tokens; {in_bytes(measured['file_bytes'])} on the disk and in memory, "
            f"{in_bytes(measured['measuring_bytes'])} while they are measured\n"
        )
    left = cost["seconds_left"]
    text.append(f"  time left: {'known after the first trials' if left is None else duration(left)}\n")
    for warning in document["warnings"]:
        text.append(f"warning: {warning}\n", style="yellow")
    return text


def _task_vectors(row: dict[str, Any]) -> str:
    """Lengths, cosines and signs of a group, each as the range over sources or pairs of them."""
    cosines, signs = ([pair[name] for pair in row["pairs"]] for name in ("cosine", "same_sign"))
    return (
        f"length {_range(row['relative_norms'].values(), '.2g')} of the base's, cosine {_range(cosines, '.2f')}, "
        f"same sign {_range(signs, '.0%')}"
    )


def _range(values: Iterable[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = list(dict.fromkeys(f"{value:{form}}" for value in (min(known), max(known))))
    return " to ".join(ends)


def _source(inputs: Inputs, index: int) -> dict[str, Any]:
    ref = inputs.refs[index]
    return {
        "name": ref.name,
        "location": ref.location,
        "fingerprint": ref.fingerprint,
        "role": "expert" if index else "base",
    }


def _tensors(inputs: Inputs) -> dict[str, Any]:
    catalogue = inputs.catalogue
    return {
        "parameters": catalogue.parameters,
        "layers": catalogue.depth,
        "parts": dict(Counter(entry.part for entry in catalogue.mergeable)),
        "rest": [entry.name for entry in catalogue.mergeable if entry.part == "rest"],
        "tied": {entry.name: list(entry.aliases) for entry in catalogue.entries if entry.aliases},
    }


def _start(space: BoundSpace) -> str:
    if isinstance(space, RecipeSpace):  # its merges have not been made yet
        return f"the best of {', '.join(space.labels)}" if len(space.labels) > 1 else space.labels[0]
    return _centre(space.decode(space.centre))


def _centre(recipe: Recipe) -> str:
    """The distinct rules of the centre in words; or its path, runs of one source together."""
    if recipe.layers:
        runs = [(source, list(run)) for source, run in groupby(recipe.layers, key=lambda layer: layer.source)]
        return "; ".join(f"layers {run[0].layer} to {run[-1].layer} of {source}" for source, run in runs)
    rules = dict.fromkeys(
        f"{rule.method}({', '.join(f'{name}={_values(value)}' for name, value in rule.parameters.items())})"
        for rule in recipe.rules
    )
    return "; ".join(rules)


def _values(value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        distinct = dict.fromkeys(f"{number:.3g}" for number in value)
        return next(iter(distinct)) if len(distinct) == 1 else f"[{', '.join(f'{number:.3g}' for number in value)}]"
    return f"{value:.3g}"


def _items(inputs: Inputs) -> dict[str, dict[str, int]]:
    parts = inputs.evaluator.split.parts
    return {part: {task: len(ids) for task, ids in tasks.items()} for part, tasks in parts.items()}


def _code(inputs: Inputs) -> dict[str, str]:
    name = inputs.spec.evaluator.name
    return {} if name in known_evaluators() else {str(path): sha for path, sha in code_files(load_pack(name)).items()}


def _statistics(inputs: Inputs) -> list[dict[str, Any]]:
    """The measurements before the search and for baselines, each with the texts, disk and memory that it takes.

    Raises:
        InvalidInput: a source has no calibration texts, or they cannot be measured.
    """
    planned = all_measurements(inputs, inputs.spec.chosen_baselines)
    return [
        {
            "kind": each.kind,
            "source": each.source.name,
            "texts": len(texts),
            "tokens": sum(len(text.tokens) for text in texts),
            "file_bytes": size.file,
            "measuring_bytes": size.measuring,
            "checkpoint_bytes": size.checkpoint,
        }
        for each, size in zip(planned, measured_sizes(inputs, planned), strict=True)
        for texts in [each.texts(inputs.evaluator)]
    ]


def _file_bytes(statistics: list[dict[str, Any]], workers: int) -> int:
    """Bytes on the disk of statistics, with the checkpoints of those that workers measure at the same time: each is
    deleted when its source is measured."""
    checkpoints: list[int] = sorted((each["checkpoint_bytes"] for each in statistics), reverse=True)
    files: list[int] = [each["file_bytes"] for each in statistics]
    return sum(files) + sum(checkpoints[:workers])


def _placement(inputs: Inputs) -> Placement:
    workers = inputs.spec.workers
    count = worker_count(workers, None)
    return placement_of(inputs, count, gpus=gpus_of_each(workers, count, None), shared=workers_share(count, None))


def _cost(inputs: Inputs, placement: Placement) -> dict[str, int]:
    spec, items = inputs.spec, _items(inputs)
    search, held_out = sum(items["search"].values()), sum(items["held_out"].values())
    rows = len(inputs.refs) + sum(candidates(baseline, spec) for baseline in spec.chosen_baselines)
    models = sum(candidates(each, spec) if BASELINES[each.name].by_task else 1 for each in spec.chosen_baselines)
    shown = len(inputs.refs) + models + spec.verdict.best + 1
    need = memory_of(inputs)
    return {
        "workers": worker_count(spec.workers, None),
        "search_items": max(0, spec.budget.trials - _scored_before(inputs)) * search,
        "baseline_items": rows * search,
        "held_out_items": shown * held_out,
        "worker_bytes": need.worker + need.copied_layers + need.ingredients - placement.shared,
        "shared_bytes": need.sources + placement.shared,
    }


def _scored_before(inputs: Inputs) -> int:
    """Trials whose scores are those of baselines."""
    exact = isinstance(inputs.space, RecipeSpace) and isinstance(inputs.evaluator, ModelEvaluator)
    return len(inputs.spec.space_baselines) if exact else 0


def _training(inputs: Inputs) -> dict[str, dict[str, int]]:
    """Baseline -> tokens that its training will read, measurements at both ends included."""
    planned = {each.name: planned_training(each, inputs) for each in inputs.spec.chosen_baselines}
    return {name: asdict(each) for name, each in planned.items() if each is not None}


def _seconds_left(inputs: Inputs) -> float | None:
    """Of the budget of the spec, at the rate that the study has measured; None before there is one."""
    try:
        with looking_at(inputs.spec) as study:
            content = study.user_attrs.get(attributes.STATUS)
    except NoStudy:
        return None
    status = None if content is None else status_of(content)
    if status is None or not status.trials_per_hour:
        return None
    budget = inputs.spec.budget
    if status.ended and status.budget == budget.trials:
        return 0.0
    left = (budget.trials - status.finished) / status.trials_per_hour * 3600
    if budget.hours is not None:
        left = min(left, budget.hours * 3600 - status.run_seconds)
    return max(0.0, left)


def _budget_warnings(inputs: Inputs) -> list[str]:
    dimensions, trials = inputs.space.active_dimensions, inputs.spec.budget.trials
    warnings = []
    paths = inputs.space.paths
    if paths is not None and (within := paths.share_within_budget()) < RARE_PATHS:
        warnings.append(
            f"{within:.2g} of all paths have at most {paths.max_layers} layers, and the others are refused unscored, "
            "which counts as a trial; use tpe or catcma, which learn from that, raise max_layers, or fix more layers"
        )
    if trials < TRIALS_PER_DIMENSION * dimensions:
        warnings.append(
            f"{trials} trials are few for {dimensions} dimensions; "
            f"plan {TRIALS_PER_DIMENSION * dimensions} or use larger groups"
        )
    if dimensions > MANY_DIMENSIONS:
        warnings.append(
            f"{dimensions} dimensions: above {MANY_DIMENSIONS} searches rarely pay; use larger groups or smooth depth"
        )
    return warnings


def _item_warnings(inputs: Inputs) -> list[str]:
    """Held-out items that are too few for the verdict: in all, and of single tasks."""
    counts = _items(inputs)["held_out"]
    weights = task_weights(inputs.spec.objective, inputs.evaluator.weights)
    items, baselines = sum(counts.values()), max(1, len(inputs.spec.chosen_baselines))
    needed = math.ceil(1 - math.log2(ALPHA * share(1) / baselines))  # coins that are rarely all on one side
    warnings = []
    if items < FEW_ITEMS:
        told = f"only a lead of {100 * needed / items:.0f} points or more" if needed <= items else "no lead at all"
        warnings.append(
            f"{items} held-out items can tell {told} over {baselines} baseline{'s' * (baselines > 1)}; plan {FEW_ITEMS}"
        )
    if len(counts) < 2:
        return warnings
    for task, count in counts.items():
        if count < FEW_ITEMS_OF_TASK:
            part = weights[task] / sum(weights.values())
            warnings.append(
                f"task {task!r} has {count} held-out item{'s' * (count > 1)}, each of which moves the mean over tasks "
                f"by {100 * part / count:.2g} points: the verdict tells little more than the others do, and trusts "
                f"the items of this one to vary as theirs; give it {FEW_ITEMS_OF_TASK} items, or less weight"
            )
    return warnings


def _rest_warnings(inputs: Inputs) -> list[str]:
    rest = [entry.name for entry in inputs.catalogue.mergeable if entry.part == "rest"]
    if not rest:
        return []
    return [
        f"{counted(len(rest), 'tensor')} of no known part: {some(rest, 5)}; the space's part_patterns can name them"
    ]
