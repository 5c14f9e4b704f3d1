"""The lengths of a run and its learning rates, with the reference's arithmetic."""

import dataclasses
import math
from collections.abc import Sequence

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
        evaluate_every: Steps between two online evaluations, which also follow the last step. 0 means never.
        learning_rate: Function of the number of updates before this one.
    """

    total_steps: int
    epoch_steps: float
    log_every: int
    checkpoint_every: int
    evaluate_every: int
    learning_rate: optax.Schedule

    def is_due(self, every: int, step: int) -> bool:
        """Whether something with an interval of `every` steps (0: never) follows this step."""
        return every > 0 and (step == self.total_steps or step % every == 0)


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


def warmup_cosine(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to the peak, then half a cosine to 0 (SimCLR, arXiv 2002.05709, appendix B.1).

    Update 0 of a run with warm-up has learning rate 0. A run cut shorter than its warm-up climbs the same
    ramp; from `warmup_steps` on the rate is 0.

    Args:
        peak: learning rate at step `warmup_steps`, >= 0.
        total_steps: updates of the run, >= 1; from there on the rate is 0.
        warmup_steps: updates of the ramp, >= 0.

    Returns:
        A function of the step (integers of any shape, counted from 0) to float32 learning rates.
    """
    decay_steps = total_steps - warmup_steps

    # optax.warmup_cosine_decay_schedule has no runs shorter than the warm-up, and rounds the ramp otherwise.
    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        ramp = step / max(warmup_steps, 1) * peak
        progress = jnp.minimum(step - warmup_steps, decay_steps) / decay_steps if decay_steps > 0 else 1.0
        cosine = peak * (0.5 * (1 + jnp.cos(jnp.pi * progress)))
        return jnp.where(step < warmup_steps, ramp, cosine)

    return schedule


def step_decay(peak: float, milestones: Sequence[int], factor: float = 0.1) -> optax.Schedule:
    """A constant rate that is multiplied by `factor` at each milestone.

    Args:
        peak: learning rate of the first steps, >= 0.
        milestones: steps from which on the next, smaller rate holds, in any order.
        factor: >= 0.

    Returns:
        A function of the step (integers of any shape, counted from 0) to float32 learning rates.
    """

    # optax.piecewise_constant_schedule does not run under strict dtype promotion.
    def schedule(step):
        step = jnp.asarray(step, jnp.int32)
        passed = jnp.sum(step[..., None] >= jnp.asarray(milestones, jnp.int32), axis=-1)
        return jnp.float32(peak) * jnp.float32(factor) ** passed.astype(jnp.float32)

    return schedule
