"""What all pictures share: the way they are saved."""

import warnings

from etils import epath

from simclr_jax.config.whole_file import write_whole


def save(path: epath.Path, figure, dpi: int) -> None:
    """Writes a figure as PNG, completely or not at all, and closes it.

    A letter that the font lacks becomes a box. matplotlib's warnings about it say nothing that a user could do.

    Args:
        path: File to write, local or gs://. Its directory is made where it does not exist.
        figure: Figure of matplotlib.
        dpi: Pixels per inch.
    """
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing from')
        write_whole(path, lambda file: figure.savefig(file, dpi=dpi, format='png'))
    pyplot.close(figure)
