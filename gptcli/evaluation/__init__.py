"""Metrics of labelled rows in plain numpy: how good, how sure, and whether one model is better than another."""
