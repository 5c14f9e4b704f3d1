"""The `simclr` program: one file a sub-command."""
