"""Opening a search: its inputs are checked, its memory is computed, and its study is created or resumed."""
