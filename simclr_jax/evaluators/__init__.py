"""What frozen features are worth: features out of a model, and the classifiers that judge them.

Everything here takes arrays, features [N, F] and labels [N], and runs on the device.
"""
