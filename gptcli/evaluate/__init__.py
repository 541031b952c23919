"""Scores, metrics and their intervals."""
