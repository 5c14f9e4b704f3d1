"""Fields of a pretraining that learns from another network: a teacher, or a momentum encoder with its queue."""

from ml_collections import ConfigDict

from simclr_jax.config.fields import AMOUNT, BELOW_ONE, NATURAL, POSITIVE, SHARE, Field
from simclr_jax.config.label_budget import parse_labels


def _is_label_budget(text: str) -> bool:
    try:
        parse_labels(text)
    except ValueError:
        return False
    return True


TASK = Field(
    'task',
    'simclr',
    'What is learnt: views of an image belong together (simclr), the same beside the projections of a teacher (disco), '
    'or the class probabilities of a fine-tuned teacher (distill).',
    choices=('simclr', 'disco', 'distill'),
)
TEACHER_FIELDS = (
    Field(
        'teacher.path',
        '',
        'disco, distill: work directory of the teacher, or a directory in trained/ of one. It may be a pattern with * '
        'that one directory matches.',
        is_path=True,
    ),
    Field(
        'teacher.head_layer',
        -1,
        'distill: layer of the head whose output the teacher classifies, 0 for the representation. -1: as its '
        'directory says. Converted weights do not say it and need it.',
        ('an integer >= -1', lambda value: value >= -1),
    ),
    Field('distill.alpha', 1.0, 'Share of the teacher in the loss. 1: no labels are read.', SHARE),
    Field('distill.temperature', 1.0, 'Temperature of the class probabilities.', POSITIVE),
    Field('distill.tau_squared', True, "Whether the teacher's part is multiplied by the squared temperature."),
    Field(
        'distill.labels',
        'all',
        'Labels that may be read: all, a number per class, or a share such as 1%. They are drawn by `seed`, like those '
        'of `simclr evaluate` by its own.',
        ('all, a number of labels per class, or a share such as 1%', _is_label_budget),
    ),
    Field('distill.images', 'all', 'Images of the training: all, or the labelled ones.', choices=('all', 'labelled')),
    Field(
        'distill.divisor',
        'labelled',
        "Divisor of the labels' part: the labelled images of a batch, or all of them.",
        choices=('labelled', 'batch'),
    ),
    Field('disco.weight', 32.0, 'Factor of the squared distances from the projections of the teacher.', AMOUNT),
)
MEMORY_FIELDS = (
    Field(
        'loss.queue_size',
        0,
        'nt_xent, info_nce: earlier keys of a momentum encoder that are further negatives, 65536 in the papers. A '
        'multiple of batch_size. 0: none.',
        NATURAL,
    ),
    Field('loss.momentum', 0.999, 'Share of its old parameters that the momentum encoder keeps per step.', BELOW_ONE),
    Field('loss.in_batch', False, 'info_nce: whether the keys of the other images of a batch are negatives too.'),
)


def check_students(config: ConfigDict) -> list[str]:
    """Returns a message for each pair of these fields that do not fit together."""
    return _check_teacher(config) + _check_memory(config) + _check_views(config)


def _check_teacher(config: ConfigDict) -> list[str]:
    problems = []
    if config.task == 'simclr' and config.teacher.path:
        problems.append(
            f'teacher.path={config.teacher.path}: task=simclr has no teacher; set task=distill or task=disco'
        )
    if config.task != 'simclr' and not config.teacher.path:
        problems.append(f"teacher.path='': task={config.task} needs it; set --config.teacher.path=DIR")
    if config.task == 'distill' and config.head.kind != 'none':
        problems.append(
            f'head.kind={config.head.kind}: a distilled student classifies its representation; set head.kind=none'
        )
    settings = config.distill
    if config.task == 'distill' and settings.alpha == 1 and settings.images == 'all' and settings.labels != 'all':
        problems.append(
            f'distill.labels={settings.labels}: no labels are read with distill.alpha=1 and distill.images=all; set it '
            'to all, distill.alpha below 1, or distill.images=labelled'
        )
    if config.loss_scale == 0 and config.task == 'simclr':
        problems.append('loss_scale=0: task=disco alone learns without a contrastive loss; set it above 0, usually 1')
    return problems


def _check_memory(config: ConfigDict) -> list[str]:
    loss, problems = config.loss, []
    if loss.in_batch and loss.name != 'info_nce':
        problems.append(f'loss.in_batch=True: info_nce alone has current keys; set it to false for {loss.name}')
    if loss.name == 'info_nce':
        if not loss.queue_size and not loss.in_batch:
            problems.append('loss.queue_size=0: info_nce has no negatives then; set it, or loss.in_batch=true')
        if not loss.normalize:
            problems.append('loss.normalize=False: info_nce compares unit vectors; set it to true')
    if not loss.queue_size:
        return problems
    size, batch = loss.queue_size, config.batch_size
    if loss.name not in ('nt_xent', 'info_nce') or config.task == 'distill':
        user = 'task=distill' if config.task == 'distill' else loss.name
        problems.append(f'loss.queue_size={size}: {user} has no queue; set it to 0')
    if not loss.normalize and loss.name == 'nt_xent':
        problems.append(f'loss.queue_size={size}: the queue holds unit vectors; set loss.normalize=true')
    if batch and size % batch:
        below = size // batch * batch
        nearest = ', '.join(str(count) for count in (below, below + batch) if count)
        problems.append(f'loss.queue_size={size}: must be a multiple of batch_size={batch}; nearest: {nearest}')
    return problems


def _check_views(config: ConfigDict) -> list[str]:
    views = config.augment.views
    if config.task == 'distill' and not views:
        return [f"augment.views={views}: the student learns from a view, for example ('crop flip',)"]
    if config.task != 'distill' and len(views) < 2:
        return [f"augment.views={views}: the loss compares at least two views, for example ('crop flip', 'crop flip')"]
    return []
