"""Metrics of representations (without labels) and of classifications."""
