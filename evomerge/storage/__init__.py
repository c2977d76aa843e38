"""Storages of studies: URLs, Optuna's storages behind them, the lock of the one writer, attributes of any length."""
