"""Evaluator packs: evaluator.yaml, the task files beside it, and the benchmarks that they may not score on."""
