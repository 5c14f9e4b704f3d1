"""Losses: functions of arrays that return scalars of the global batch."""
