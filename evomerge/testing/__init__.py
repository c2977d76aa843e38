"""Contract tests for implementations of evomerge's protocols: a test module subclasses one and says how to build yours.

Holds: `SamplerContract`, `EvaluatorContract`, `ExecutorContract`, `EngineContract`, each in a file of its name.
Does not hold: anything that a search runs. pytest, which only this room imports, comes with the extra `testing`.
"""

import pytest

pytest.register_assert_rewrite(
    "evomerge.testing.engine_contract",
    "evomerge.testing.evaluator_contract",
    "evomerge.testing.executor_contract",
    "evomerge.testing.sampler_contract",
)
