"""Texts and tables for people: leaderboard, progress, inventory, commands that repeat a score; read from the study."""
