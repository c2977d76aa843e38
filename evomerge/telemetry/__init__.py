"""Telemetry: what others are told of a run, by messages to a program or a server and by a file of metrics.

Holds: the observer of a run, delivery of messages, the format of Prometheus. Does not hold: tables and lines for people
(`report/`). Start reading at `run_observer.py`.
"""
