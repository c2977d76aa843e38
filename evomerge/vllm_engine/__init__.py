"""vLLM as the engine of an evaluator: weights by its weight transfer, answers from its log-probabilities.

- Holds: the choice of an engine in a spec, the start of vLLM, transfers, the mapping of requests, the A-B-A self-check.
- Does not hold: tasks, and the live model, which the bank writes and from which the weights are sent.
- Start reading at: `engine_settings.py`, then `vllm_engine.py` and `swap_check.py`.
"""
