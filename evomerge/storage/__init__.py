"""Storages of studies: URLs, Optuna's storages behind them, attributes of any length."""
