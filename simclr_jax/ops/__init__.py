"""Functions of arrays, written for speed or exactness. This is the only package where code may be hard to read."""
