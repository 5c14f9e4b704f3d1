"""`simclr evaluate`: from a work directory, data sets and protocols to one table of results."""
