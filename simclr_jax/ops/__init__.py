"""Functions of arrays that are written for speed or exactness: the one place where code may be hard to read."""
