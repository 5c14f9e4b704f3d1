"""Metrics of representations, which need no labels, and of classifications."""
