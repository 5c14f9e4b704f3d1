"""One picture of a run: the views it saw, how training went, and what the encoder is worth."""

import pathlib

import numpy as np

from simclr_jax import workdir
from simclr_jax.data.sources import load_examples
from simclr_jax.evaluation import NAMES, Evaluation
from simclr_jax.log import read_metrics
from simclr_jax.report.table import column_title

COLORS = {'pixels': '#b0b0b0', 'untrained': '#7f9fc8', 'simclr': '#d1495b'}
IMAGES_SHOWN = 8


def draw(directory: str, evaluation: Evaluation) -> pathlib.Path:
    """Draws `report/summary.png` from metrics.jsonl, the configuration and an evaluation.

    Args:
        directory: a local work directory.
        evaluation: of its checkpoint.

    Returns:
        The picture's path.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = read_metrics(str(pathlib.Path(directory) / 'metrics.jsonl'))
    figure = pyplot.figure(figsize=(13, 8.5), layout='constrained')
    panels = figure.add_gridspec(3, 3, height_ratios=(0.8, 1, 1.1))
    _draw_views(figure.add_subplot(panels[0, :]), directory)
    _draw_curves(figure.add_subplot(panels[1, 0]), rows, {'contrast_loss': 'NT-Xent'}, 'loss')
    accuracies = {'contrast_accuracy': 'contrast', 'probe_accuracy': 'linear probe, training images'}
    accuracies |= {name: f'kNN, k = {name[10:]}' for row in rows for name in row if name.startswith('knn_top1_k')}
    _draw_curves(figure.add_subplot(panels[1, 1]), rows, accuracies, 'accuracy')
    ranks = {'effective_rank': 'effective rank of z'}
    _draw_curves(figure.add_subplot(panels[1, 2]), rows, ranks, 'effective rank')
    _draw_scores(figure.add_subplot(panels[2, :]), evaluation)

    path = pathlib.Path(directory) / 'report' / 'summary.png'
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def _draw_views(axes, directory: str) -> None:
    """Images of the training split above two of their views."""
    from simclr_jax.data.pipeline import TrainBatches
    from simclr_jax.pretraining import training_policy

    config = workdir.read_config(directory)
    examples = load_examples(config.data, config.data.split)
    count = min(IMAGES_SHOWN * 2, examples.size)
    batch = next(TrainBatches(examples, training_policy(config), batch_size=count, seed=config.seed))
    views = [np.concatenate(batch['views'][:, number], axis=1) for number in range(batch['views'].shape[1])]
    axes.imshow(np.concatenate(views[:2], axis=0), interpolation='nearest')
    axes.set_title('two views of each image, as the encoder sees them')
    axes.axis('off')


def _draw_curves(axes, rows: list[dict], names: dict[str, str], title: str) -> None:
    for name, label in names.items():
        points = [(row['step'], row[name]) for row in rows if row.get(name) is not None]
        if points:
            style = 'o-' if len(points) < 20 else '-'
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    axes.set_title(title)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_scores(axes, evaluation: Evaluation) -> None:
    columns = list(dict.fromkeys((score.protocol, score.labels_per_class) for score in evaluation.scores))
    kinds = list(dict.fromkeys(score.features for score in evaluation.scores))
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        of_kind = {(s.protocol, s.labels_per_class): s for s in evaluation.scores if s.features == kind}
        heights = [100 * of_kind[column].top1 for column in columns]
        errors = [100 * of_kind[column].deviation for column in columns]
        places = np.arange(len(columns)) + number * width
        bars = axes.bar(places, heights, width * 0.92, yerr=errors, color=COLORS[kind], label=NAMES[kind])
        axes.bar_label(bars, fmt='%.1f', fontsize=8)
    axes.set_xticks(np.arange(len(columns)) + width * (len(kinds) - 1) / 2)
    axes.set_xticklabels([column_title(*column) for column in columns])
    axes.set_ylabel('top-1 accuracy, %')
    axes.set_ylim(0, 125)
    axes.set_title(f'{evaluation.train} -> {evaluation.test}')
    axes.legend(loc='upper center', ncols=len(kinds))
