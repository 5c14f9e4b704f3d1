"""Statistics of random views, and how far they are from the reference's in standard errors."""

import itertools

import numpy as np


def quantities(views, image):
    """One number per view [N, H, W, 3] for each quantity that the reference's file describes."""
    channel_means = views.mean((1, 2))
    rows, columns = views.mean((2, 3)), views.mean((1, 3))
    result = {
        'mean_r': channel_means[:, 0],
        'mean_g': channel_means[:, 1],
        'mean_b': channel_means[:, 2],
        'std': views.std((1, 2, 3)),
        'left_minus_right': columns[:, :16].mean(1) - columns[:, 16:].mean(1),
        'top_minus_bottom': rows[:, :16].mean(1) - rows[:, 16:].mean(1),
        'mean_abs_dx': np.abs(np.diff(views, axis=2)).mean((1, 2, 3)),
        'is_gray': np.ptp(views, axis=-1).max((1, 2)) <= 1e-5,
        'is_black': (views <= 0.0).all((1, 2, 3)),
        'fraction_zero': (views <= 0.0).mean((1, 2, 3)),
        'fraction_one': (views >= 1.0).mean((1, 2, 3)),
        'std_of_channel_means': channel_means.std(1),
    }
    if image.shape == views.shape[1:]:
        result['unchanged'] = (views == image).all((1, 2, 3))
    return result


def deviations(values, expected, expected_draws):
    """Deviations of mean, standard deviation and quantiles, in standard errors of both samples together."""
    share = 1.0 / len(values) + 1.0 / expected_draws
    found = {}
    if 'std' not in expected:
        probability = (values.sum() + expected['mean'] * expected_draws) / (len(values) + expected_draws)
        error = np.sqrt(probability * (1 - probability) * share)
        return {'mean': abs(values.mean() - expected['mean']) / max(error, 1e-9)}
    # The reference's own standard errors, scaled from its number of draws to both.
    scale = np.sqrt(expected_draws * share)
    for name, value in (('mean', values.mean()), ('std', values.std(ddof=1))):
        found[name] = abs(value - expected[name]) / max(scale * expected[f'{name}_se'], 1e-9)
    return found | quantile_deviations(values, expected['quantiles'], share)


def quantile_deviations(values, quantiles, share, rounding=1e-5):
    """How far from p the share of values up to the reference's p-quantile is; ties count on either side."""
    found = {}
    for key, quantile in quantiles.items():
        p = float(key)
        below, up_to = (np.mean(values < quantile + sign * rounding) for sign in (-1, 1))
        found[f'quantile {key}'] = max(below - p, p - up_to, 0.0) / np.sqrt(p * (1 - p) * share)
    return found


def too_far(actual, expected, expected_draws, limit=4.0):
    """The statistics that deviate by `limit` standard errors or more."""
    return {
        f'{quantity}: {name}': round(float(value), 2)
        for quantity in expected
        for name, value in deviations(actual[quantity], expected[quantity], expected_draws).items()
        if not value < limit
    }


# Strength of the colour jitter, and the implementation of its brightness with our name for it.
CASES = list(itertools.product((1.0, 0.5), (('simclrv2', 'multiply'), ('simclrv1', 'add'))))


def reference(statistics, strength, implementation):
    """The reference's statistics of one pipeline."""
    entries = {(entry['strength'], entry['impl']): entry for entry in statistics['pipelines']}
    return entries[strength, implementation]
