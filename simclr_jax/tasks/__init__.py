"""Tasks: what is learnt. Each has `init`, `loss` and `encode`; the step and the loop know no more of them."""
