"""The study: records of a search in an Optuna study, samplers whose state is rebuilt from it, and its siblings."""
