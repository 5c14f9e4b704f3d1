"""Classifiers of frozen features: functions of features [N, F] and labels [N] that run on the devices."""
