"""Tasks: what is learnt. Each has `init`, `outputs` and `loss`, which are all that the training step uses."""
