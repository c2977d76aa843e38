"""The text format of Prometheus, and the numbers of a search in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evomerge.cluster.executor import WORKER_STATES
from evomerge.spec import BudgetSpec
from evomerge.study.status import Status
from evomerge.study.tally import Tally

STATES = ("running", "paused", "finished", "interrupted", "failed")


@dataclass(frozen=True)
class MetricFamily:
    """A metric: its name without the prefix, its kind, a sentence, and its values by labels."""

    name: str
    kind: str
    help: str
    values: Iterable[tuple[Mapping[str, str], float | None]]


def metrics_text(study: str, metrics: Iterable[MetricFamily]) -> str:
    """The content of a textfile; values that are not known are left out."""
    lines = []
    for metric in metrics:
        known = [(labels, value) for labels, value in metric.values if value is not None]
        if not known:
            continue
        name = f"evomerge_{metric.name}"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        lines += [f"{name}{_labels({'study': study, **labels})} {float(value)!r}" for labels, value in known]
    return "\n".join(lines) + "\n"


def search_metrics(status: Status, tally: Tally, budget: BudgetSpec, memory: int | None) -> list[MetricFamily]:
    """The numbers of a search.

    Args:
        memory: resident bytes of the controller; None where the system does not tell.
    """
    spent = tally.spent
    complete = status.finished - status.failed - status.dropped
    phases = {phase: seconds for phase, seconds in tally.seconds.items() if phase != "total"}
    states = {state: float(state == status.state) for state in STATES}
    trials = {"complete": complete, "dropped": status.dropped, "failed": status.failed, "running": status.running}
    workers = dict.fromkeys(WORKER_STATES, 0) | dict(status.workers)  # a gauge keeps a state that is left out
    left = {
        "trials": (budget.trials, status.finished),
        "hours": (budget.hours, status.run_seconds / 3600),
        "items": (budget.items, spent.items),
        "tokens": (budget.tokens, spent.forward_tokens),
    }
    return [
        MetricFamily("state", "gauge", "1 for the state of the search.", _each("state", states)),
        MetricFamily("best_value", "gauge", "Value of the best trial on the search items.", [({}, status.best)]),
        MetricFamily("best_trial", "gauge", "Number of the best trial.", [({}, status.best_trial)]),
        MetricFamily("trials", "gauge", "Trials by state.", _each("state", trials)),
        MetricFamily("phase_seconds_total", "counter", "Seconds of workers by phase.", _each("phase", phases)),
        MetricFamily("worker_restarts", "gauge", "Workers replaced in this run.", [({}, status.restarts)]),
        MetricFamily("workers", "gauge", "Workers by state.", _each("state", workers)),
        MetricFamily("controller_memory_bytes", "gauge", "Resident memory of the controller.", [({}, memory)]),
        MetricFamily(
            "worker_peak_memory_bytes",
            "gauge",
            "Largest memory of a worker, or of its GPU where it has one.",
            [({}, spent.peak_bytes)],
        ),
        MetricFamily(
            "tokens_total",
            "counter",
            "Tokens read by models, without and with gradients.",
            _each("pass", {"forward": spent.forward_tokens, "gradient": spent.gradient_tokens}),
        ),
        MetricFamily("items_total", "counter", "Items scored.", [({}, spent.items)]),
        MetricFamily("gpu_hours_total", "counter", "Hours that GPUs were held.", [({}, spent.gpu_seconds / 3600)]),
        # A killed run leaves those up to its last stored status: no counter, which must never fall.
        MetricFamily("run_hours", "gauge", "Hours of all runs, pauses left out.", [({}, status.run_seconds / 3600)]),
        MetricFamily(
            "budget_left",
            "gauge",
            "Rest of the budget by its limits.",
            [({"limit": name}, None if of is None else max(0.0, of - used)) for name, (of, used) in left.items()],
        ),
        MetricFamily("updated_seconds", "gauge", "Time of these numbers, since the epoch.", [({}, status.updated)]),
    ]


def _each(label: str, values: Mapping[str, float]) -> list[tuple[Mapping[str, str], float | None]]:
    return [({label: name}, value) for name, value in values.items()]


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
