"""Numbers of a run among the metrics of its Ray cluster, which Ray itself serves to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ray
from ray.util.metrics import Gauge

Values = Iterable[tuple[Mapping[str, str], float | None]]


class RayGauges:
    """Gauges by their names. Those that are labelled by `labels` beside a study have one value for each."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._gauges: dict[str, Gauge] = {}

    @staticmethod
    def are_served() -> bool:
        """Whether this process is part of a Ray cluster at present."""
        return bool(ray.is_initialized())

    def set(self, name: str, sentence: str, values: Values) -> None:
        """Set the values of a metric by its labels; those that are not known keep their last one."""
        for labels, value in values:
            if value is None:
                continue
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description=sentence, tag_keys=("study", *labels))
            self._gauges[name].set(value, tags={"study": self._study, **labels})
