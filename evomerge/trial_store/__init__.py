"""The trials of a study as its only writer has them: in memory, and as rows of Optuna's tables."""
