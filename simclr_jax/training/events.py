"""TensorBoard events, written with the `tensorboard` package alone. No TensorFlow."""

import io
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from simclr_jax.training.growing import GrowingFile


class EventFile:
    """A new event file in a directory. Each call appends whole records, and the file is closed between calls.

    Args:
        directory: Directory of the event files, local or gs://. It is made where it does not exist.

    Raises:
        ModuleNotFoundError: The package `tensorboard` is not installed.
        OSError: The file cannot be written.
    """

    def __init__(self, directory: str):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.image import metadata as image_metadata
        from tensorboard.plugins.scalar import metadata as scalar_metadata
        from tensorboard.summary.writer.record_writer import RecordWriter
        from tensorboard.util import tensor_util

        # The classes of messages are made when the module is imported, so that type checkers do not see them.
        protos: tuple[Any, Any] = (event_pb2, summary_pb2)
        self._event, self._summary, self._record_writer = protos[0].Event, protos[1].Summary, RecordWriter
        self._tensor = tensor_util.make_tensor_proto
        self._scalar_metadata = scalar_metadata.create_summary_metadata('', '')
        self._image_metadata = image_metadata.create_summary_metadata('', '')
        folder = epath.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a directory in the order of the times in their names.
        path = folder / f'events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}'
        self._records = GrowingFile(path)
        self._append([self._event(wall_time=time.time(), file_version='brain.Event:2')])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends scalars of a step."""
        self._append_values(step, {name: (np.float32(value), self._scalar_metadata) for name, value in values.items()})

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Appends pictures of a step.

        Args:
            step: Number of updates done.
            images: Pictures [N, H, W, 3] in [0, 1] by name.
        """
        values = {}
        for name, pictures in images.items():
            height, width = pictures.shape[1:3]
            files = [str(width).encode(), str(height).encode(), *map(_png, pictures)]
            values[name] = (np.array(files, object), self._image_metadata)
        self._append_values(step, values)

    def _append_values(self, step: int, values: Mapping) -> None:
        made = [
            self._summary.Value(tag=name, tensor=self._tensor(value), metadata=metadata)
            for name, (value, metadata) in values.items()
        ]
        self._append([self._event(wall_time=time.time(), step=step, summary=self._summary(value=made))])

    def _append(self, events: list) -> None:
        records = io.BytesIO()
        writer = self._record_writer(records)
        for event in events:
            writer.write(event.SerializeToString())
        self._records.append(records.getvalue())

    def flush(self) -> None:
        """Writes what a storage such as gs:// does not have yet."""
        self._records.flush()


def _png(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] in [0, 1] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(file, 'PNG')
    return file.getvalue()
