"""The projection head g, between representation and contrastive loss (SimCLR, arXiv 2002.05709, section 4.2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.layers import dense, dense_bn, relu
from simclr_jax.ops.precision import at_least_float32

KINDS = ('nonlinear', 'linear', 'none')


class ProjectionHead(nn.Module):
    """Maps representations to projections, which the contrastive loss compares.

    Each layer is dense without bias, followed by batch norm. All layers but the last end in ReLU. The norm of the last
    layer has no offset. Without batch norms the dense layers have a bias, as in MoCo v2 (arXiv 2003.04297).

    Attributes:
        kind: 'nonlinear', 'linear' (a single layer) or 'none' (the representation is the projection).
        layers: Number of layers of the nonlinear head, at least 1. SimCLR has 2, SimCLRv2 has 3 (arXiv 2006.10029,
            section 2).
        out_dim: Width D of the projection.
        batch_norm: Whether each layer has a batch norm.
        hidden_dim: Width of the other layers of the nonlinear head. None: the width of the representation.
        dtype: Precision of the computation. Parameters, statistics and the projection are at least float32.

    Raises:
        ValueError: The kind is unknown, there is no layer, or `until` is beyond the last layer.
    """

    kind: str = 'nonlinear'
    layers: int = 3
    out_dim: int = 128
    hidden_dim: int | None = None
    batch_norm: bool = True
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"kind='{self.kind}' is unknown; choose one of {KINDS}")
        if self.layers < 1:
            raise ValueError(f"layers={self.layers} must be at least 1; a head without layers is kind='none'")

    @property
    def num_layers(self) -> int:
        """Number of layers of this kind of head."""
        return {'nonlinear': self.layers, 'linear': 1, 'none': 0}[self.kind]

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool, until: int | None = None) -> list[jax.Array]:
        """Projects representations.

        Args:
            h: Representations [N, F].
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.
            until: Number of layers to make and run. None: all.

        Returns:
            The list [h, output of layer 1, ..., z], whose last entry is the projection z [N, D]. Fine-tuning may start
            from any entry (SimCLRv2, section 2). With `until` it is the first until + 1 entries.
        """
        hidden_widths = self._hidden_widths(h.shape[-1])
        depth = self.num_layers
        until = depth if until is None else until
        if not 0 <= until <= depth:
            raise ValueError(f'head layer {until} does not exist; this head has {depth}: choose 0 to {depth}')
        outputs = [h]
        for index, width in enumerate(hidden_widths[:until]):
            names = f'dense{index + 1}', f'bn{index + 1}'
            if self.batch_norm:
                outputs.append(dense_bn(outputs[-1], width, names=names, train=train, dtype=self.dtype))
            else:
                layer = dense(width, dtype=self.dtype, use_bias=True, name=names[0])
                outputs.append(relu(layer(outputs[-1])))
        if until > len(hidden_widths):
            last = len(outputs)
            layer = dense(self.out_dim, dtype=self.dtype, use_bias=not self.batch_norm, name=f'dense{last}')
            x = at_least_float32(layer(outputs[-1]))
            outputs.append(BatchNorm(use_bias=False, name=f'bn{last}')(x, train=train) if self.batch_norm else x)
        return outputs

    def _hidden_widths(self, features: int) -> list[int]:
        """Widths of the layers before the last."""
        hidden_layers = self.layers - 1 if self.kind == 'nonlinear' else 0
        return [self.hidden_dim or features] * hidden_layers
