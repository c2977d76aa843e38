"""Metrics of lm-eval's tasks: the number of an item from the responses to it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.evaluation.aggregates import CUSTOM, WEIGHTED
from evomerge.evaluation.lm_eval.harness_seeds import harness_seeds
from evomerge.evaluation.lm_eval.tasks import PreparedTask, is_unsafe
from evomerge.evaluation.right_options import right_options
from evomerge.packs.pack import PackTask

_log = logging.getLogger(__name__)

# Metrics of a whole corpus, or of pairs of a gold label and a prediction: no number belongs to one item.
_CORPUS_AGGREGATES = frozenset({"f1", "matthews_corrcoef", "bleu", "chrf", "chrf++", "ter", "bypass", "nanmean"})


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The conversion of the responses to a task's requests into numbers.

    Attributes:
        name: the metric, as lm-eval prints it.
        filter: lm-eval's filter ensemble that the responses go through first.
        aggregate: the task's own aggregation.
        kind: lm-eval's name of the aggregation, "custom" where it has none.
        higher_is_better: direction, as the task declares it.
    """

    name: str
    filter: Any
    aggregate: Callable[[Sequence[Any]], float]
    kind: str
    higher_is_better: bool


def check_metric(name: str, task: Any, metric: Metric, requests: Mapping[int, list[Instance]]) -> None:
    """Ask the metric of an item for a number, with responses that nobody gave; of every item where code gives it.

    Code may leave the metric out for some documents, and held-out ones are scored when the search is over.

    Raises:
        InvalidInput: an item's results have no such metric, or what it gives is no number; names the item.
    """
    items = list(requests.items())
    tried = [_try_out(name, task, metric, *item) for item in (items if _may_leave_out(task) else items[:1])]
    unsuited = [error for error in tried if error is not None]
    if unsuited:
        kind = type(unsuited[0]).__name__
        _log.info("task %s: %d items cannot be tried out: %s: %s", name, len(unsuited), kind, unsuited[0])


def _may_leave_out(task: Any) -> bool:
    """Whether code that may be run on no answer decides which metrics an item has."""
    listed = getattr(task.config, "metric_list", None) or ()
    return not is_unsafe(task) and (_has_code(task) or any(callable(each["metric"]) for each in listed))


def _try_out(name: str, task: Any, metric: Metric, item: int, instances: list[Instance]) -> Exception | None:
    """See `check_metric`; the error of a task's own functions, which these responses may not suit."""
    made_up = {"generate_until": "", "loglikelihood_rolling": -1.0}
    for number, instance in enumerate(instances):
        instance.resps = [made_up.get(instance.request_type, (-1.0 - number, False))] * instance.repeats
    filter_responses(metric, instances)
    try:
        outcome_of(name, task, metric, item, instances)
    except InvalidInput:
        raise
    except Exception as error:  # they raise what they like
        return error
    finally:
        for instance in instances:
            instance.resps, instance.filtered_resps = [], {}
    return None


def metric_of(task: Any, entry: PackTask) -> Metric:
    """The metric that a pack chooses for a task.

    One that the task does not list may come from the task's only metric that is a function, such as "pass@1" from
    `pass_at_k`: it is aggregated like that one, and `check_metric` tells whether the function gives it.

    Raises:
        InvalidInput: unknown metric or filter, no number per item, or no direction.
    """
    filters = {each.name: each for each in task._filters}
    if entry.filter is not None and entry.filter not in filters:
        raise unknown_name(f"filter of task {entry.task!r}", entry.filter, filters)
    aggregations = task.aggregation()
    functions = _functions_as_metrics(task)
    listed = functions[0] if entry.metric not in aggregations and len(functions) == 1 else entry.metric
    if listed not in aggregations:
        raise unknown_name(f"metric of task {entry.task!r}", entry.metric, aggregations)
    aggregate = aggregations[listed]
    kind = next((name for name, known in AGGREGATION_REGISTRY.items() if known is aggregate), CUSTOM)
    if kind in _CORPUS_AGGREGATES or entry.metric == "likelihood":
        others = ", ".join(sorted(set(aggregations) - {entry.metric})) or "none; add one to its metric_list"
        raise InvalidInput(
            f"metric {entry.metric!r} of task {entry.task!r} gives no number for every single item, which races and "
            f"paired comparisons need; its other metrics: {others}"
        )
    direction = task.higher_is_better().get(listed)
    if not isinstance(direction, bool):
        raise InvalidInput(
            f"task {entry.task!r} does not say higher_is_better for {entry.metric!r}; add it to the task"
        )
    chosen = filters[entry.filter] if entry.filter else next(iter(filters.values()))
    return Metric(name=entry.metric, filter=chosen, aggregate=aggregate, kind=kind, higher_is_better=direction)


def _functions_as_metrics(task: Any) -> list[str]:
    """Names of the metrics that are functions, the task's or of Hugging Face evaluate, which may return a dict."""
    listed = [(each["metric"], each.get("hf_evaluate")) for each in getattr(task.config, "metric_list", None) or ()]
    return [getattr(metric, "__name__", metric) for metric, found in listed if callable(metric) or found is True]


def filter_responses(metric: Metric, instances: list[Instance]) -> None:
    """Filter the responses to an item. Filters may be code of the task, whose draws depend on no other item."""
    with harness_seeds():
        metric.filter.apply(instances)


def outcome_of(name: str, task: Any, metric: Metric, item: int, instances: Sequence[Instance]) -> tuple[Any, float]:
    """The task's result of an item, and its number.

    Raises:
        InvalidInput: it has none; names the item.
        MergeError: it is NaN.
    """
    try:
        raw = raw_of(task, metric, instances)
        return raw, number_of(name, metric, raw)
    except InvalidInput as error:
        raise InvalidInput(f"item {item}: {error}") from error


def raw_of(task: Any, metric: Metric, instances: Sequence[Instance]) -> Any:
    """The task's result of an item: a function of its document and responses alone, whatever was scored before."""
    responses = [instance.filtered_resps[metric.filter.name] for instance in instances]
    document, has_code = instances[0].doc, _has_code(task)
    with harness_seeds() if has_code or _functions_as_metrics(task) else nullcontext():
        results = task.process_results(copy.deepcopy(document) if has_code else document, responses)
    if metric.name not in results:
        raise unknown_name(f"metric among the results of task {task.task_name!r}:", metric.name, results)
    return results[metric.name]


def _has_code(task: Any) -> bool:
    """Whether results are computed from the document by code of others, which may change it or draw at random.

    lm-eval gives it a document that is taken from the data set anew. Its own code does neither, and is given the
    document itself, by whose identity it finds what is rendered.
    """
    return not isinstance(task, PreparedTask) or callable(task.config.process_results)


def gold_of(task: Any, metric: Metric, instances: Sequence[Instance]) -> float | None:
    """Log-probability of an item's right answer, of the likeliest one where there are several."""
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice"):
        return None
    likelihoods = [float(instance.filtered_resps[metric.filter.name][0]) for instance in instances]
    if task.OUTPUT_TYPE == "loglikelihood":
        return likelihoods[0]
    document = instances[0].doc
    right = right_options(task, document, task.doc_to_choice(document))
    return max((likelihoods[position] for position in right), default=None)


def number_of(task: str, metric: Metric, raw: Any) -> float:
    """The outcome of one item. Weighted perplexities keep the log-likelihood."""
    if metric.kind in WEIGHTED:
        raw = raw[0]
    elif metric.kind == "brier_score":
        raw = metric.aggregate([raw])
    if getattr(raw, "ndim", None) == 0:  # of numpy or torch: the booleans of neither are numbers to Python
        raw = raw.item()
    if not isinstance(raw, Real):
        raise InvalidInput(
            f"metric {metric.name!r} of task {task!r} gives {type(raw).__name__} for an item, not a number; choose a "
            f"metric with a number for every item"
        )
    number = float(raw)
    if math.isnan(number):
        raise MergeError(f"task {task!r}: {metric.name} of an item is not a number (NaN)")
    return number
