"""Features of a data set: images in batches, on all devices, to arrays on the host."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.data.spec import Batch


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder makes of a data set.

    Attributes:
        values: float32 [N, F].
        labels: int32 [N], -1: none.
        index: int64 [N], which image of the split.
    """

    values: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def extract(encode: Callable[[jax.Array], jax.Array], batches: Iterator[Batch], mesh: Mesh) -> Features:
    """Encodes every image once; rows of mask 0 are left out.

    Args:
        encode: jitted, images [B, H, W, 3] -> features [B, F], rows divided among the mesh's devices.
        batches: of one view, see data/spec.py.
        mesh: the devices.
    """
    values, labels, index = [], [], []
    for batch in batches:
        features = encode(parallel.to_global({'images': batch['views'][:, 0]}, mesh)['images'])
        rows = (features, batch['label'], batch['index'], batch['mask'])
        if jax.process_count() > 1:
            rows = (
                multihost_utils.process_allgather(rows[0], tiled=True),
                *(multihost_utils.process_allgather(part, tiled=True) for part in rows[1:]),
            )
        features, label, position, mask = map(np.asarray, rows)
        is_image = mask > 0
        values.append(features[is_image])
        labels.append(label[is_image])
        index.append(position[is_image])
    return Features(np.concatenate(values), np.concatenate(labels), np.concatenate(index))
