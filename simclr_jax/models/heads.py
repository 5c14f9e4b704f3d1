"""The projection head g, between the representation and the contrastive loss (SimCLR, section 4.2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.layers import dense
from simclr_jax.ops.precision import at_least_float32

KINDS = ('nonlinear', 'linear', 'none')


class ProjectionHead(nn.Module):
    """Maps representations to where the contrastive loss compares them.

    Every layer is dense, without bias, and batch-normalised; all but the last end in ReLU, the last has no
    offset either.

    Attributes:
        kind: 'nonlinear', 'linear' (a single layer) or 'none' (the representation is the projection).
        layers: of the nonlinear head: 2 in SimCLR, 3 in SimCLRv2 (2006.10029, section 2).
        out_dim: D, the width of the projection.
        hidden_dim: width of the nonlinear head's other layers; None: that of the representation.
        dtype: of the computation; parameters, statistics and the projection are float32 at least.

    Raises:
        ValueError: unknown kind, fewer than one layer; or `until` is beyond the last layer.
    """

    kind: str = 'nonlinear'
    layers: int = 3
    out_dim: int = 128
    hidden_dim: int | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"kind='{self.kind}' is unknown; choose one of {KINDS}")
        if self.layers < 1:
            raise ValueError(f"layers={self.layers} must be at least 1; a head without layers is kind='none'")

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool, until: int | None = None) -> list[jax.Array]:
        """Projects representations.

        Args:
            h: [N, F].
            train: normalise with the batch's statistics and move the moving ones, or use these.
            until: number of layers to make and run; None: all.

        Returns:
            [h, output of layer 1, ..., z]: what fine-tuning may start from (SimCLRv2, section 2), the
            projection z [N, D] last. With `until` the first until + 1 of these.
        """
        hidden_widths = self._hidden_widths(h.shape[-1])
        depth = len(hidden_widths) + (self.kind != 'none')
        until = depth if until is None else until
        if not 0 <= until <= depth:
            raise ValueError(f'head layer {until} does not exist; this head has {depth}: choose 0 to {depth}')
        outputs = [h]
        for index, width in enumerate(hidden_widths[:until]):
            x = dense(width, dtype=self.dtype, name=f'dense{index + 1}')(outputs[-1])
            outputs.append(BatchNorm(name=f'bn{index + 1}').rectified(x, train=train))
        if until > len(hidden_widths):
            last = len(outputs)
            x = at_least_float32(dense(self.out_dim, dtype=self.dtype, name=f'dense{last}')(outputs[-1]))
            outputs.append(BatchNorm(use_bias=False, name=f'bn{last}')(x, train=train))
        return outputs

    def _hidden_widths(self, features: int) -> list[int]:
        """Of the layers before the last."""
        hidden_layers = self.layers - 1 if self.kind == 'nonlinear' else 0
        return [self.hidden_dim or features] * hidden_layers
