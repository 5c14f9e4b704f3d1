"""The program `simclr`: one file per command."""
