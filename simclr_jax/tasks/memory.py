"""Momentum encoder and queue: the memory of MoCo (arXiv 1911.05722) and SimCLRv2 (arXiv 2006.10029, section 2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.ops.similarities import l2_normalize
from simclr_jax.sharding import replicated

# Names of the frozen parts of all tasks.
KEY_ENCODER, QUEUE, TEACHER = 'key_encoder', 'queue', 'teacher'
# Parts of the model that the momentum encoder has too. It needs no probe.
_COPIED = ('encoder', 'head')


@dataclasses.dataclass(frozen=True)
class MomentumMemory:
    """Frozen parts of a contrastive task that the step updates, see `training.task.Memory`.

    The momentum encoder starts as a copy of encoder and head. Before each step its parameters move towards those of the
    model: k = m k + (1 - m) p. It then makes the keys. After the step the keys of the whole global batch replace the
    oldest rows of the queue.

    Attributes:
        momentum: Share m of the old parameters that a step keeps, in [0, 1).
        queue_size: Rows K of the queue, a multiple of the global batch. 0: no queue.
        dimensions: Width D of a key.
        mesh: Devices that train.
    """

    momentum: float
    queue_size: int
    dimensions: int
    mesh: Mesh

    def init(self, key: jax.Array, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The parts at step 0. The queue holds random rows of unit length.

        Args:
            key: Key of the queue's first rows.
            variables: Variables of the task's model, {'params': ..., 'batch_stats': ...}.

        Returns:
            {'key_encoder': {'params': ..., 'batch_stats': ...}}, and with a queue also
            'queue': {'rows': float32 [K, D], 'next': int32 [], the oldest row}.
        """
        parts = self.copy_of(variables)
        if self.queue_size:
            rows = l2_normalize(jax.random.normal(key, (self.queue_size, self.dimensions), jnp.float32))
            parts[QUEUE] = {'rows': rows, 'next': jnp.zeros((), jnp.int32)}
        return parts

    def copy_of(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The part {'key_encoder': ...} that is a copy of the model's variables."""
        copy = {
            collection: {part: variables[collection][part] for part in _COPIED if part in variables[collection]}
            for collection in ('params', 'batch_stats')
        }
        return {KEY_ENCODER: jax.tree.map(jnp.copy, copy)}

    def before(self, params: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
        """The parts with a momentum encoder that has moved towards the model's parameters `params`."""
        encoder = parts[KEY_ENCODER]
        moved = jax.tree.map(
            lambda old, new: self.momentum * old + (1 - self.momentum) * new,
            encoder['params'],
            {part: params[part] for part in encoder['params']},
        )
        return {**parts, KEY_ENCODER: {**encoder, 'params': moved}}

    def after(self, parts: Mapping[str, Any], outputs: Any, moved: Mapping[str, Any]) -> dict[str, Any]:
        """The parts with the momentum encoder's new statistics and the new keys.

        Args:
            parts: Parts as `before` made them.
            outputs: Outputs of the task, with 'keys' [B, D] of unit length.
            moved: Collections that moved, with 'key_encoder': the momentum encoder's batch_stats.
        """
        encoder = {**parts[KEY_ENCODER], 'batch_stats': moved[KEY_ENCODER]}
        parts = {**parts, KEY_ENCODER: encoder}
        if QUEUE in parts:
            rows, first = parts[QUEUE]['rows'], parts[QUEUE]['next']
            keys = jax.lax.with_sharding_constraint(outputs['keys'], replicated(self.mesh)).astype(rows.dtype)
            rows = jax.lax.dynamic_update_slice_in_dim(rows, keys, first, axis=0)
            parts[QUEUE] = {'rows': rows, 'next': (first + len(keys)) % self.queue_size}
        return parts
