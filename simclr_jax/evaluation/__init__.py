"""`simclr evaluate`: measures the encoder of a work directory on data sets by protocols, and writes one table."""
