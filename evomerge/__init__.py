"""Evolutionary model merging: search the merges of a base model and its fine-tunes for one that is good at everything.

from evomerge import load_spec, run_search

study = run_search(load_spec("search.yaml"))     # an ordinary optuna.Study
print(study.best_params)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load_spec", "run_search"]

if TYPE_CHECKING:
    from evomerge.search.run import run_search
    from evomerge.spec import load_spec


def __getattr__(name: str) -> Any:
    """Imports the two functions when they are first used: `import evomerge` alone loads nothing heavy."""
    if name == "load_spec":
        from evomerge.spec import load_spec

        return load_spec
    if name == "run_search":
        from evomerge.search.run import run_search

        return run_search
    raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
