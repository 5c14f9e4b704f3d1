"""The lengths of a run and its learning rates, with the reference's arithmetic."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Lengths and intervals of a run, in steps.

    Attributes:
        total_steps: Updates of the run.
        epoch_steps: Updates per epoch, a fraction.
        log_every: Steps between two lines of the log. The last step is always logged.
        checkpoint_every: Steps between two checkpoints. The last step is always saved.
        checkpoint_minutes: Minutes after which a checkpoint is due even so. 0 means never.
        evaluate_every: Steps between two online evaluations, which also follow the last step. 0 means never.
        learning_rate: Function of the number of updates before this one.
    """

    total_steps: int
    epoch_steps: float
    log_every: int
    checkpoint_every: int
    evaluate_every: int
    learning_rate: optax.Schedule
    checkpoint_minutes: float = 10.0

    def is_due(self, every: int, step: int) -> bool:
        """Whether something with an interval of `every` steps (0: never) follows this step."""
        return every > 0 and (step == self.total_steps or step % every == 0)


def total_steps(num_examples: int, epochs: float, batch_size: int) -> int:
    """Updates of a run: floor(N * epochs / B) + 1. The reference also makes this one update more than whole batches.

    Args:
        num_examples: Images of the training split, N >= 1.
        epochs: Passes over the images, > 0. Fractions are allowed.
        batch_size: Images of the global batch, B >= 1.
    """
    return int(num_examples * epochs // batch_size) + 1


def warmup_steps(num_examples: int, warmup_epochs: float, batch_size: int) -> int:
    """Updates of the linear warm-up, floor(N * warmup_epochs / B). They do not depend on the length of the run."""
    return round(warmup_epochs * num_examples // batch_size)


def peak_learning_rate(base: float, batch_size: int, scaling: str) -> float:
    """The learning rate after warm-up (SimCLR, appendix B.1).

    Args:
        base: Configured learning rate, > 0.
        batch_size: Images of the global batch.
        scaling: 'linear' (base * B / 256), 'sqrt' (base * sqrt(B)) or 'none' (base).

    Raises:
        ValueError: The scaling is unknown.
    """
    if scaling == 'linear':
        return base * batch_size / 256
    if scaling == 'sqrt':
        return base * math.sqrt(batch_size)
    if scaling == 'none':
        return base
    raise ValueError(f"scaling='{scaling}' is unknown; choose 'linear', 'sqrt' or 'none'")


def steps_of_epochs(epochs: float, num_examples: int, batch_size: int) -> int:
    """Number of updates nearest to a number of epochs, at least 1. Intervals of checkpoints and evaluations use it."""
    return max(1, round(epochs * num_examples / batch_size))


def warmup_cosine(peak: float | jax.Array, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then half a cosine to 0 (SimCLR, arXiv 2002.05709, appendix B.1).

    Update 0 of a run with warm-up has learning rate 0. A run that is shorter than its warm-up climbs the same ramp.
    Its rate is 0 from `warmup_steps` on, which it does not reach.

    Args:
        peak: Learning rate at step `warmup_steps`, >= 0.
        total_steps: Updates of the run, >= 1. From this step on the rate is 0, unless the warm-up is longer.
        warmup_steps: Updates of the ramp, >= 0.

    Returns:
        A function of the step (integers of any shape, counted from 0) to float32 learning rates.

    Example:
        >>> rate = warmup_cosine(peak=4.0, total_steps=6, warmup_steps=2)
        >>> [round(float(rate(step)), 2) for step in range(7)]
        [0.0, 2.0, 4.0, 3.41, 2.0, 0.59, 0.0]
    """
    decay_steps = total_steps - warmup_steps

    # optax.warmup_cosine_decay_schedule refuses runs shorter than the warm-up, and rounds the ramp in another way.
    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        ramp = step / max(warmup_steps, 1) * peak
        progress = jnp.minimum(step - warmup_steps, decay_steps) / decay_steps if decay_steps > 0 else 1.0
        cosine = peak * (0.5 * (1 + jnp.cos(jnp.pi * progress)))
        return jnp.where(step < warmup_steps, ramp, cosine)

    return schedule


def step_decay(peak: float | jax.Array, milestones: Sequence[int], factor: float = 0.1) -> optax.Schedule:
    """A constant rate that is multiplied by `factor` at each milestone.

    Args:
        peak: Learning rate of the first steps, >= 0.
        milestones: First steps of the next rates, in any order.
        factor: Ratio of a rate over the one before it, >= 0.

    Returns:
        A function of the step (integers of any shape, counted from 0) to float32 learning rates.
    """

    # optax.piecewise_constant_schedule does not run under strict dtype promotion.
    def schedule(step):
        step = jnp.asarray(step, jnp.int32)
        passed = jnp.sum(step[..., None] >= jnp.asarray(milestones, jnp.int32), axis=-1)
        return jnp.float32(peak) * jnp.float32(factor) ** passed.astype(jnp.float32)

    return schedule
