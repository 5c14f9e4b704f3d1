"""Tables and pictures made from a work directory."""
