"""What a sampler knows about the search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from optuna.distributions import BaseDistribution

__all__ = ["SamplerSpace"]


class SamplerSpace(Protocol):
    """The search space as samplers see it. It is given once and never inferred from the trials of a study, where one
    odd trial would change it."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every parameter with its distribution, in a fixed order."""
        ...

    @property
    def conditional(self) -> bool:
        """Whether some parameters exist only for some values of others."""
        ...

    @property
    def centre(self) -> Mapping[str, Any]:
        """The params that a search starts from."""
        ...

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Whether every parameter that exists has a value."""
        ...
