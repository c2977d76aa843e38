"""Forward passes over prepared requests: log-likelihoods and greedy texts of a live model. Knows nothing of lm-eval."""
