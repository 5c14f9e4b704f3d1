"""A picture of nearest neighbours: one row per query image, with the images that an encoder finds similar."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from PIL import Image

from simclr_jax.config.paths import printable
from simclr_jax.data.reader import images_at
from simclr_jax.data.spec import DataError, Examples, Files
from simclr_jax.evaluation.embed import classes_shown, embed
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features
from simclr_jax.probes.knn import nearest_neighbours
from simclr_jax.report import figures

# Longer side of an image in the picture, in pixels. Smaller images are enlarged.
THUMBNAIL = 192
LONGEST_CAPTION = 18
QUERY_COLOR = '#d1495b'


@dataclasses.dataclass(frozen=True)
class Query:
    """An image whose nearest neighbours are searched.

    Attributes:
        name: Path of its file, or its id in the embedded split.
        image: Pixels, uint8 [H, W, 3], at most THUMBNAIL long.
        index: Index of the image in the split. None for a separate file.
        feature: Feature of a separate file, float32 [F]. None for an image of the split, which is embedded anyway.
    """

    name: str
    image: np.ndarray
    index: int | None = None
    feature: np.ndarray | None = None


def open_queries(names: Sequence[str], examples: Examples, encoder: FeatureExtractor, layer: str) -> list[Query]:
    """Finds the query images, and encodes those in separate files.

    Args:
        names: Ids of images of the split, or paths of image files.
        examples: The split that is embedded.
        encoder: The encoder that embeds the split.
        layer: Features to compare, see `FeatureExtractor.features`.

    Returns:
        One query per name, in the same order.

    Raises:
        DataError: A name is neither an id nor a file, or the image cannot be read.
    """
    ids = examples.ids()
    index_of = {name: index for index, name in enumerate(ids) if name in names}
    paths = [name for name in dict.fromkeys(names) if name not in index_of]
    missing = [printable(path) for path in paths if not epath.Path(path).exists() or epath.Path(path).is_dir()]
    if missing:
        raise DataError(
            f'neighbours of {", ".join(missing)}: there is no such file, and no such image in {examples.name}; '
            f'give an image file, or an id such as {printable(ids[0])}. A name with a comma in it needs quotes'
        )
    files = Examples('the query images', len(paths), Files(paths), np.full(len(paths), -1, np.int32), ())
    of_split, of_files = _thumbnails(examples, index_of.values()), _thumbnails(files, range(len(paths)))
    damaged = [name for name, index in index_of.items() if index not in of_split]
    damaged += [path for index, path in enumerate(paths) if index not in of_files]
    if damaged:
        raise DataError(f'neighbours of {", ".join(map(printable, damaged))}: cannot be read as an image; give another')
    queries = {name: Query(name, of_split[index], index=index) for name, index in index_of.items()}
    if paths:
        features = embed(encoder, files, layer).values
        for index, path in enumerate(paths):
            queries[path] = Query(path, of_files[index], feature=features[index])
    return [queries[name] for name in names]


def draw(path: epath.Path, queries: Sequence[Query], examples: Examples, features: Features, k: int) -> None:
    """Draws one row per query: its image, then its nearest neighbours with class and cosine similarity.

    Args:
        path: File of the picture, *.png, local or gs://.
        queries: At least one query. A query from the split is its own nearest neighbour.
        examples: The split that holds the neighbours.
        features: Features of the split.
        k: Number of neighbours to draw. A smaller split shows all its images.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    row_of = {index: row for row, index in enumerate(features.index.tolist())}
    wanted = [features.values[row_of[q.index]] if q.feature is None else q.feature for q in queries]
    similarity, rows = nearest_neighbours(features.values, np.stack(wanted), k=min(k, len(features.values)))
    images = _thumbnails(examples, features.index[rows].flat)
    captions = _captions(examples, features)

    figure, cells = pyplot.subplots(
        len(queries), 1 + rows.shape[1], squeeze=False, layout='constrained',
        figsize=(1.4 * (1 + rows.shape[1]), 1.75 * len(queries)),
    )  # fmt: skip
    for line, query, found, cosines in zip(cells, queries, rows.tolist(), similarity, strict=True):
        _draw_cell(line[0], query.image, f'{_shortened(query.name)}\nnearest:', QUERY_COLOR)
        for axes, row, cosine in zip(line[1:], found, cosines, strict=True):
            _draw_cell(axes, images[int(features.index[row])], f'{captions[row]}\n{cosine:.3f}', 'black')
    figures.save(path, figure, dpi=100)


def _draw_cell(axes, image: np.ndarray, caption: str, color: str) -> None:
    axes.imshow(image, interpolation='nearest')
    axes.set_title(caption, fontsize=8, color=color, parse_math=False)
    axes.axis('off')


def _captions(examples: Examples, features: Features) -> list[str]:
    """Caption of each image: its classes, or its name if it has none."""
    names = np.array(examples.ids())[features.index]
    shown = classes_shown(features.labels, examples.class_names)
    return [_shortened(', '.join(classes) or name) for classes, name in zip(shown, names.tolist(), strict=True)]


def _shortened(name: str) -> str:
    """The last part of a path or id on one line. A long one keeps only its end."""
    name = printable(name.rpartition('/')[2])
    return name if len(name) <= LONGEST_CAPTION else f'…{name[1 - LONGEST_CAPTION :]}'


def _thumbnails(examples: Examples, indices: Iterable[int]) -> dict[int, np.ndarray]:
    """Small images by their index, uint8 [H, W, 3]. Unreadable images are left out."""
    found = {}
    chosen = list(indices)
    for index, image in images_at(examples, chosen) if chosen else ():
        thumbnail = Image.fromarray(image)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        found[index] = np.asarray(thumbnail)
    return found
