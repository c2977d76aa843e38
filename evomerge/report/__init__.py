"""What a person reads: leaderboard, progress, preflight, exports with their cards. All derived from the study."""
