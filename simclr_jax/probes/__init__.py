"""Classifiers of frozen features. They are functions of features [N, F] and labels [N], and run on the devices."""
