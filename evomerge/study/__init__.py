"""The study: records of a search in an Optuna study, and its siblings."""
