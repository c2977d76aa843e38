"""A search: its course from spec to verdict, and where it starts besides the centre."""
