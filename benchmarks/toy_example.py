"""The toy search in a space of the experts alone: one weight per expert and block of two layers.

The example itself searches among its baselines. What is measured of samplers, races and candidates shall not depend on
what these are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from evomerge import load_spec
from evomerge.spec import SearchSpec, resolve

__all__ = ["TOY", "toy_search"]

TOY: Final = Path(__file__).parent.parent / "examples" / "toy" / "search.yaml"
SPACE: Final = "task-arithmetic-per-block"


def toy_search(**changes: Any) -> SearchSpec:
    """The spec of examples/toy in that space, with other fields where they are given."""
    content = load_spec(TOY).model_dump(mode="json", by_alias=True)
    return resolve(SearchSpec.model_validate({**content, "space": SPACE, **changes}), TOY.parent)
