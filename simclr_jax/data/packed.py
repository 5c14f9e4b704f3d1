"""Source: images that `simclr pack` wrote. Local ones are read in any order, without TensorFlow.

A packed split is TFRecord shards of tf.train.Example with the features image, label and id, and an index. It names the
bytes of each image within its shard, so that neither the record nor the shard around it is read.
"""

import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.config.paths import is_remote, printable, user_path
from simclr_jax.config.storage import check_reachable, first_line
from simclr_jax.config.whole_file import write_whole
from simclr_jax.data.images import ImageError
from simclr_jax.data.spec import DataError, Examples, Packed, needs_tensorflow

# Ending of the index of a split, and the key of its description in the index's metadata.
INDEX, DESCRIPTION = '.index.parquet', b'simclr_packed'


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of a packed split, or of a part of it.

    Attributes:
        rows: For each image: shard int32, start int64 and length int32 (bytes of the image's file in the shard),
            label int32 (-1: none) and id str, as arrays or lists of N.
        description: Settings and facts: source, images, side, quality, class_names, shards (names), sizes (bytes of
            each shard), unreadable (ids) and digest.
    """

    rows: dict[str, Any]
    description: dict[str, Any]

    def write(self, path: epath.Path) -> None:
        """Writes the index to a file, completely or not at all."""
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table(self.rows)
        table = table.replace_schema_metadata({DESCRIPTION: json.dumps(self.description).encode()})
        write_whole(path, lambda file: parquet.write_table(table, file))


def read_index(path: epath.Path) -> Index:
    """Reads an index.

    Raises:
        DataError: The file is not such an index.
    """
    import pyarrow
    from pyarrow import parquet

    # The files of TensorFlow, which epath opens on gs://, lack attributes that the reader asks for.
    content = path.read_bytes()
    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        description = json.loads(table.schema.metadata[DESCRIPTION])
        arrays = {name: table[name].to_numpy() for name in ('shard', 'start', 'length', 'label')}
        return Index(arrays | {'id': table['id'].to_pylist()}, description)
    except Exception as error:
        # Damaged files raise errors of many classes in the reader.
        raise DataError(
            f'{printable(path)} is no index of packed images: {first_line(error)}; run simclr pack again without it'
        ) from error


def load_packed(data: ConfigDict, split: str) -> Examples:
    """Opens a packed split.

    Args:
        data: Group `data` of a configuration. `path` is the directory of the packed data set, local or gs://.
        split: Name of the split.

    Raises:
        DataError: There is no such split, it is incomplete, or it is on gs:// and TensorFlow is not installed.
    """
    root = epath.Path(user_path(data.path))
    check_reachable(root)
    path = root / f'{split}{INDEX}'
    if not path.exists():
        there = sorted(file.name.removesuffix(INDEX) for file in root.glob(f'*{INDEX}')) if root.is_dir() else []
        raise DataError(
            f'data.path={printable(root)} holds no packed split {split!r}; there are: '
            f'{printable(", ".join(there)) or "none"}. simclr pack makes one'
        )
    index = read_index(path)
    rows, description = index.rows, index.description
    shards = tuple(os.fspath(root / name) for name in description['shards'])
    if is_remote(root):
        with needs_tensorflow(f'packed images on {data.path}', 'copy them to a local disk'):
            from simclr_jax.data.streams import packed_stream
        counts = np.bincount(rows['shard'], minlength=len(shards))
        content = packed_stream(
            shards,
            counts,
            lanes=data.lanes,
            shuffle_buffer=data.shuffle_buffer,
            ids=rows['id'],
            digest=description['digest'],
        )
        labels = None
    else:
        _check_sizes(shards, description['sizes'])
        places = (rows[name] for name in ('shard', 'start', 'length'))
        content = Packed(shards, *places, ids=rows['id'], digest=description['digest'])
        labels = rows['label']
    name = f'{printable(root)}/{split}'
    left_out = len(description['unreadable'])
    notes = (f'{name}: {left_out:,} unreadable images were left out when it was packed.',) if left_out else ()
    return Examples(name, len(rows['id']), content, labels, tuple(description['class_names']), notes=notes)


def _check_sizes(shards: tuple[str, ...], sizes: list[int]) -> None:
    """Raises DataError unless every shard has the size that it was written with."""
    for shard, size in zip(shards, sizes, strict=True):
        found = os.path.getsize(shard) if os.path.isfile(shard) else None
        if found != size:
            state = 'is missing' if found is None else f'has {found:,} bytes, not {size:,}'
            raise DataError(
                f'{printable(shard)} {state}; copy the packed images again as a whole, or pack them into an empty '
                'directory'
            )


def file_of(content: Packed, index: int) -> bytes:
    """The encoded image at a position of a packed split.

    Raises:
        ImageError: The shard cannot be read there.
    """
    shard = content.shards[content.shard[index]]
    try:
        found = os.pread(_open(shard, content.digest), content.length[index], content.start[index])
    except OSError as error:
        raise ImageError(f'{shard} cannot be read: {error}') from error
    if len(found) != content.length[index]:
        raise ImageError(f'{shard} is shorter than its index says')
    return found


@functools.cache
def _open(path: str, digest: str) -> int:
    """A descriptor of a shard of this digest, open until the process ends. There are a few hundred shards at most."""
    del digest
    return os.open(path, os.O_RDONLY)
