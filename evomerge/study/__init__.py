"""The study: Optuna storage, the one writer, samplers whose state is rebuilt from the study, and its siblings."""
