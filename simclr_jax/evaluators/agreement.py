"""Whether two sets of features of the same images agree on who is similar to whom: no labels needed."""

import numpy as np

from simclr_jax.evaluators.knn import nearest_neighbours


def neighbourhood_agreement(first, second, k: int = 10) -> float:
    """Mean share of the k nearest neighbours that an image has in common in two sets of features.

    Neighbours are those of `nearest_neighbours` within each set, an image not being its own. The features may
    be those of two views of every image, of two layers or of two encoders.

    Args:
        first: [N, F] finite features.
        second: [N, G] finite features of the same images in the same order.
        k: number of neighbours, in 1..N - 1.

    Returns:
        From 0 to 1; k / (N - 1) is to be expected of unrelated features.

    Raises:
        ValueError: shapes or k break a rule above; the message names the cure.
    """
    if len(first) != len(second):
        raise ValueError(f'{len(first)} features and {len(second)}: pass one of each image, in the same order')
    neighbours = [nearest_neighbours(features, features, k=k, exclude_self=True)[1] for features in (first, second)]
    # No neighbour occurs twice in one set, so whoever does in both is common to them.
    both = np.sort(np.concatenate(neighbours, axis=1), axis=1)
    return float(np.count_nonzero(both[:, 1:] == both[:, :-1]) / neighbours[0].size)
