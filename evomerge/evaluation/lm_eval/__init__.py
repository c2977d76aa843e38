"""The lm-eval adapter: the one folder that knows lm-eval, and the private handles of it that we need."""
