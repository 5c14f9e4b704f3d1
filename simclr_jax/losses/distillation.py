"""What a student learns from a teacher: its class probabilities (SimCLRv2), or its projections (DisCo)."""

import jax
import jax.numpy as jnp
import optax

from simclr_jax.losses.supervised import labelled_mean, softmax_cross_entropy
from simclr_jax.ops.precision import at_least_float32
from simclr_jax.ops.similarities import l2_normalize

# What the sum of the cross-entropies of labelled images is divided by.
DIVISORS = ('labelled', 'batch')


def distillation(
    student: jax.Array,
    teacher: jax.Array,
    labels: jax.Array,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    tau_squared: bool = True,
    divisor: str = 'labelled',
    weights: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Distillation of a classifier (SimCLRv2, arXiv 2006.10029, equations 2 and 3).

    With teacher logits t, student logits s and temperature T the loss of an image is

        alpha * cross-entropy(softmax(t / T), softmax(s / T)) * T^2 + (1 - alpha) * cross-entropy(label, softmax(s)).

    The paper's formula has no T^2. The released program has it: the gradient does not vanish at high temperatures then.

    Args:
        student: Logits s of K classes, [..., K].
        teacher: Logits t, [..., K]. They pass no gradient.
        labels: Integers below K, [...]. A negative label means none. They are not read where alpha is 1.
        alpha: Share of the teacher, in [0, 1].
        temperature: Temperature T > 0 of both probabilities.
        tau_squared: Whether the teacher's part is multiplied by T^2.
        divisor: 'labelled' averages the labels' part over the labelled images. 'batch' divides their sum by the number
            of all images, as the paper's sum over both kinds does.
        weights: Weights >= 0 of the images, [...]. None: all 1.

    Returns:
        The loss [], and metrics: 'distillation_loss' where alpha is above 0, 'cross_entropy' where it is below 1.

    Raises:
        ValueError: `divisor` is unknown.

    Example:
        A student that agrees with its teacher has the smallest loss, the entropy of the teacher.

        >>> logits = jnp.array([[0.0, 0.0], [0.0, 0.0]])
        >>> loss, _ = distillation(logits, logits, jnp.array([-1, -1]))
        >>> print(f'{loss:.4f}')
        0.6931
    """
    if divisor not in DIVISORS:
        raise ValueError(f"divisor='{divisor}' is unknown; choose one of {DIVISORS}")
    metrics: dict[str, jax.Array] = {}
    loss = jnp.zeros((), at_least_float32(student).dtype)
    if alpha > 0:
        targets = jax.nn.softmax(at_least_float32(jax.lax.stop_gradient(teacher)) / temperature)
        of_images = optax.softmax_cross_entropy(at_least_float32(student) / temperature, targets)
        value = labelled_mean(of_images, jnp.zeros_like(labels), weights) * (temperature**2 if tau_squared else 1.0)
        metrics['distillation_loss'] = value
        loss = loss + alpha * value
    if alpha < 1:
        value = softmax_cross_entropy(student, labels, weights)
        if divisor == 'batch':
            value = value * labelled_mean((labels >= 0).astype(value.dtype), jnp.zeros_like(labels), weights)
        metrics['cross_entropy'] = value
        loss = loss + (1 - alpha) * value
    return loss, metrics


def squared_distances(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Squared distances of projections on the unit sphere (DisCo, arXiv 2104.09124, equation 3).

    The published program sums over the 32 images of a device and averages over devices. That is 32 times this mean.

    Args:
        student: Projections [B, V, D] of V views of B images.
        teacher: Projections [B, V, D]. They pass no gradient.

    Returns:
        The mean over images of the sum over views of |s - t|^2, with rows of unit length, a scalar from 0 to 4 V.
    """
    difference = l2_normalize(student) - l2_normalize(jax.lax.stop_gradient(teacher))
    return jnp.mean(jnp.sum(jnp.square(difference), axis=(1, 2)))
