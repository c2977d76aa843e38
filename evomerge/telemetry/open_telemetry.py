"""The numbers of a search as OpenTelemetry metrics: read where the process runs under an SDK, and else by nobody."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter_provider

from evomerge.telemetry.prometheus import MetricFamily


class OpenTelemetryMetrics:
    """Observable instruments, `evomerge.NAME`, that report the latest numbers whenever the SDK's reader asks.

    Args:
        study: the attribute of this name on every value.
        provider: makes the meter; by default the global one, whose exporters the environment names (`OTEL_…`).
    """

    def __init__(self, study: str, provider: MeterProvider | None = None) -> None:
        self._study = study
        self._meter: Meter = (provider or get_meter_provider()).get_meter("evomerge")
        self._latest: dict[str, MetricFamily] = {}

    def set(self, numbers: Iterable[MetricFamily]) -> None:
        """Keep what is reported from now on; an instrument is made with the first number of its name."""
        for each in numbers:
            known = each.name in self._latest
            self._latest[each.name] = each
            if not known:
                self._observe(each)

    def _observe(self, metric: MetricFamily) -> None:
        counter = metric.kind == "counter"
        create = self._meter.create_observable_counter if counter else self._meter.create_observable_gauge
        name = f"evomerge.{metric.name.removesuffix('_total')}"
        create(name, callbacks=[partial(self._observations, metric.name)], description=metric.help)

    def _observations(self, name: str, options: CallbackOptions) -> Iterable[Observation]:
        for labels, value in self._latest[name].values:
            if value is not None:
                yield Observation(value, {"study": self._study, **labels})
