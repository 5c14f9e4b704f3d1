"""From epochs, images and batches to steps and learning rates: the arithmetic of the reference, in plain Python."""

import math


def total_steps(num_examples: int, epochs: float, batch_size: int) -> int:
    """Optimiser updates of a run: floor(N * epochs / B) + 1, one more than whole batches, as the reference does.

    Args:
        num_examples: images of the training split, N >= 1.
        epochs: passes over them, > 0; fractions are allowed.
        batch_size: images of the global batch, B >= 1.
    """
    return int(num_examples * epochs // batch_size) + 1


def warmup_steps(num_examples: int, warmup_epochs: float, batch_size: int) -> int:
    """Updates of the linear warm-up, floor(N * warmup_epochs / B); a run cut short keeps its length."""
    return round(warmup_epochs * num_examples // batch_size)


def peak_learning_rate(base: float, batch_size: int, scaling: str) -> float:
    """The learning rate after warm-up (SimCLR, appendix B.1).

    Args:
        base: the configured learning rate, > 0.
        batch_size: images of the global batch.
        scaling: 'linear' (base * B / 256), 'sqrt' (base * sqrt(B)) or 'none' (base).

    Raises:
        ValueError: unknown scaling.
    """
    if scaling == 'linear':
        return base * batch_size / 256
    if scaling == 'sqrt':
        return base * math.sqrt(batch_size)
    if scaling == 'none':
        return base
    raise ValueError(f"scaling='{scaling}' is unknown; choose 'linear', 'sqrt' or 'none'")


def steps_of_epochs(epochs: float, num_examples: int, batch_size: int) -> int:
    """Whole updates nearest to so many epochs, at least one: for intervals (checkpoints, online evaluation)."""
    return max(1, round(epochs * num_examples / batch_size))
