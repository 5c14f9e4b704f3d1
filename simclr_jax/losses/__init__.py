"""Losses: functions of arrays, whose scalars are those of the global batch."""
