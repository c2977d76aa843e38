"""Evolutionary model merging: search the merges of a base model and its fine-tunes for one that is good at everything.

from evomerge import load_spec, run_search

study = run_search(load_spec("search.yaml"))     # an ordinary optuna.Study
print(study.best_params)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["build_spec", "load_spec", "read_search", "run_search"]

if TYPE_CHECKING:
    from evomerge.search.run import run_search
    from evomerge.spec import build_spec, load_spec
    from evomerge.study.stored_search import read_search

_PLACES = {
    "build_spec": "evomerge.spec",
    "load_spec": "evomerge.spec",
    "read_search": "evomerge.study.stored_search",
    "run_search": "evomerge.search.run",
}


def __getattr__(name: str) -> Any:
    """Imports the functions when they are first used: `import evomerge` alone loads nothing heavy."""
    if name not in _PLACES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
