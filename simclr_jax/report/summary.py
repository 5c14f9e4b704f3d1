"""One picture of a run: its views, the progress of the training and the results of the evaluation."""

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.config import with_values
from simclr_jax.config.paths import printable
from simclr_jax.data.feed import open_feed
from simclr_jax.data.sources import load_examples
from simclr_jax.data.spec import DataError
from simclr_jax.evaluation.results import ENCODERS, SHARES, Results, Score, headings
from simclr_jax.report import figures
from simclr_jax.training import workdir
from simclr_jax.training.metrics_file import read_metrics

COLORS = {'pixels': '#b0b0b0', 'untrained': '#7f9fc8', 'simclr': '#d1495b'}
IMAGES_SHOWN = 8
# Curves of each panel, by their names in metrics.jsonl. A run has those of its task.
_OF_LOSSES = {
    'distillation_loss': 'distillation',
    'cross_entropy': 'cross-entropy of the labels',
    'teacher_distance': 'squared distances from the teacher',
}
_OF_ACCURACIES = {
    'contrast_accuracy': 'contrast',
    'probe_accuracy': 'linear probe, training images',
    'accuracy': 'student, training images',
    'teacher_accuracy': 'teacher, training images',
    'agreement': 'agreement with the teacher',
    'student_top1': 'student, test images',
}
_CONTRASTIVE = {
    'nt_xent': 'NT-Xent',
    'nt_logistic': 'NT-Logistic',
    'margin_triplet': 'margin triplet',
    'info_nce': 'InfoNCE',
}


def draw(directory: str, results: Results) -> epath.Path:
    """Draws `report/summary.png` from metrics.jsonl, the configuration and the results.

    Args:
        directory: Work directory, local or gs://.
        results: Results of its checkpoint.

    Returns:
        Path of the picture.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    path = epath.Path(directory) / 'metrics.jsonl'
    # The work directory of a converted encoder holds no metrics.
    rows = read_metrics(str(path))
    # Heights in inches of views, curves and bars. The number of bars depends on the protocols.
    heights = (1.9, 2.8, 1.2 + 0.14 * len(_shares(results)))
    figure = pyplot.figure(figsize=(13, sum(heights)), layout='constrained')
    panels = figure.add_gridspec(3, 3, height_ratios=heights)
    config = workdir.read_config(directory)
    _draw_views(figure.add_subplot(panels[0, :]), config)
    for number, (title, names) in enumerate(curves_of(config, rows).items()):
        _draw_curves(figure.add_subplot(panels[1, number]), rows, names, title)
    _draw_scores(figure.add_subplot(panels[2, :]), results)

    path = epath.Path(directory) / 'report' / 'summary.png'
    figures.save(path, figure, dpi=90)
    return path


def curves_of(config: ConfigDict, rows: list[dict]) -> dict[str, dict[str, str]]:
    """Labels of the curves of a run by their names in metrics.jsonl, for the title of each of the three panels.

    Args:
        config: Configuration of the run.
        rows: Rows of metrics.jsonl.
    """
    of_knn = {name: f'kNN, k = {name[10:]}' for row in rows for name in row if name.startswith('knn_top1_k')}
    # A distilled student has no projections.
    third = {'effective rank': {'effective_rank': 'effective rank of z'}}
    if config.task == 'distill':
        third = {'learning rate': {'learning_rate': 'learning rate'}}
    losses = {'contrast_loss': _CONTRASTIVE[config.loss.name], **_OF_LOSSES}
    return {'loss': losses, 'accuracy': _OF_ACCURACIES | of_knn, **third}


def _draw_views(axes, config: ConfigDict) -> None:
    """Up to two views of images of the training split, one above the other. Converted encoders have no such images."""
    axes.axis('off')
    try:
        feed, views = _first_views(config)
    except DataError:
        axes.set_title('the images of the pretraining are not on this machine')
        return
    rows = [np.concatenate(views[:, number], axis=1) for number in range(views.shape[1])]
    axes.imshow(np.concatenate(rows[:2], axis=0), interpolation='nearest')
    number = 'two views' if len(rows) > 1 else 'a view'
    axes.set_title(f'{number} of each image, as the encoder sees them (feed: {feed})')


def _first_views(config: ConfigDict) -> tuple[str, np.ndarray]:
    """The feed of a run, and views that it makes, [N, V, S, S, 3] in [0, 1]."""
    examples = load_examples(config.data, config.data.split)
    count = min(IMAGES_SHOWN * 2, examples.size)
    # This process draws alone, whatever the size of the job.
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    feed = open_feed(with_values(config, {'batch_size': count}), examples, mesh)
    batch = sharding.to_global(next(feed.batches(0)), mesh)
    return feed.name, np.asarray(jax.jit(feed.make_views)(batch, jax.random.key(config.seed)))


def _draw_curves(axes, rows: list[dict], names: dict[str, str], title: str) -> None:
    for name, label in names.items():
        points = [(row['step'], row[name]) for row in rows if row.get(name) is not None]
        if points:
            style = 'o-' if len(points) < 20 else '-'
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    axes.set_title(title)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def _draw_scores(axes, results: Results) -> None:
    """Draws all results that are shares as bars in percent: one group per row of the table, one bar per encoder."""
    scores = _shares(results)
    titles = headings(dict.fromkeys(score.row for score in scores))
    kinds = [name for name in ENCODERS if any(score.encoder == name for score in scores)]
    height = 0.8 / max(len(kinds), 1)
    for number, kind in enumerate(kinds):
        of_kind = {score.row: score for score in scores if score.encoder == kind}
        places = [place + number * height for place, row in enumerate(titles) if row in of_kind]
        found = [of_kind[row] for row in titles if row in of_kind]
        lengths = [100 * score.value for score in found]
        spread = np.array([_spread(score) for score in found]).T
        bars = axes.barh(places, lengths, height * 0.92, xerr=spread, color=COLORS[kind], label=ENCODERS[kind])
        axes.bar_label(bars, fmt='%.1f', fontsize=7, padding=2)
    axes.set_yticks(np.arange(len(titles)) + height * (len(kinds) - 1) / 2)
    # A name with $ is no formula.
    axes.set_yticklabels(map(printable, titles.values()), fontsize=8, parse_math=False)
    axes.set_ylim(len(titles) - 0.2, -0.5)
    axes.set_xlim(0, 110)
    axes.set_xlabel('%')
    axes.set_title('\n'.join(map(printable, results.datasets.values())), fontsize=9, parse_math=False)
    if kinds:
        # Beside the bars: inside it would hide some of them.
        axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))


def _shares(results: Results) -> list[Score]:
    return [score for score in results.scores if score.metric in SHARES]


def _spread(score: Score) -> tuple[float, float]:
    """Length of the interval, or the deviation, below and above the value, in percent."""
    if score.deviation is not None or score.low is None or score.high is None:
        deviation = 100 * (score.deviation or 0.0)
        return deviation, deviation
    return 100 * (score.value - score.low), 100 * (score.high - score.value)
