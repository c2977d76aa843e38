"""What the search is compared with: sources as they stand, and merges that cost no search or a small one."""

from evomerge.baselines.current import current_baselines, left_out, settings_of
from evomerge.baselines.making import BaselineMaker
from evomerge.baselines.merges import Ingredients, candidates, check_baseline, training_settings
from evomerge.baselines.rows import Row, RowResult, new_row, record_row, score_rows, source_rows

__all__ = [
    "BaselineMaker",
    "Ingredients",
    "Row",
    "RowResult",
    "candidates",
    "check_baseline",
    "current_baselines",
    "left_out",
    "new_row",
    "record_row",
    "score_rows",
    "settings_of",
    "source_rows",
    "training_settings",
]
