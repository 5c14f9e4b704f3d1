"""Protocols: what an encoder is worth, one file for each kind."""
