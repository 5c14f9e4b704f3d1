"""Weights of other programs in, and ours out, each with a check of what the network computes."""
