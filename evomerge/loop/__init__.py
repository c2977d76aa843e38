"""The loop: candidates from proposal to result, jobs in flight, the budget, and the signals that end a run."""
