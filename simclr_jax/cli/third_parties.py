"""What the libraries below would say or import on their own account, and nobody needs."""

import importlib.abc
import logging
import os
import pathlib
import sys
import traceback


def quiet() -> None:
    """TensorFlow and TFDS tell of their own affairs at start; errors are still shown."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    # oneDNN announces itself in two lines at every start, and may sum in another order from one machine to the next.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    absl_logging.set_stderrthreshold('error')
    for logger in (absl_logging.get_absl_logger(), logging.getLogger('asyncio')):
        logger.addFilter(_is_not_told_again)
    sys.unraisablehook = _tell_of_unraisable
    if _NotForKeras not in sys.meta_path:
        sys.meta_path.insert(0, _NotForKeras)


class _NotForKeras(importlib.abc.MetaPathFinder):
    """TensorFlow imports Keras, which looks for libraries of which nothing here is used: 1.3 s of every start."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Says that they are not there, as long as TensorFlow is being imported."""
        tensorflow = sys.modules.get('tensorflow')
        if name in ('matplotlib', 'sklearn') and getattr(tensorflow and tensorflow.__spec__, '_initializing', False):
            raise ModuleNotFoundError(f'{name} is kept from Keras', name=name)
        return None


def _tell_of_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
    """All but the threads of tensorstore, which go on writing for a save that was given up, and find nobody waiting."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def _is_not_told_again(record: logging.LogRecord) -> bool:
    """Of what Orbax's threads meet, they log the traceback, and then the next save or wait raises it."""
    trace = record.exc_info[2] if record.exc_info else None
    files = (pathlib.Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace))
    return not any('orbax' in file.parts for file in files)
