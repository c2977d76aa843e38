"""The charts of a study as data, and as plots of Optuna Dashboard.

Holds: the course of a search, scores on both parts of the items, weights over depth; the plots of Optuna Dashboard.
Does not hold: scores and tests of its own.
Start reading at: `search_course.py`, then `dashboard_plots.py`.
"""
