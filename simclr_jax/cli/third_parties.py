"""Suppresses messages and imports of other libraries that a user of `simclr` does not need."""

import importlib.abc
import logging
import os
import pathlib
import sys
import traceback


def quiet() -> None:
    """Suppresses the start-up messages of TensorFlow, TFDS and matplotlib, and slow imports of Keras.

    Errors are still shown.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    # oneDNN prints two lines at every start. Its order of summation may also differ between machines.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    # A size that is some seconds old would cut off what another process has written to gs:// meanwhile.
    os.environ.setdefault('GCS_STAT_CACHE_MAX_AGE', '0')
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    absl_logging.set_stderrthreshold('error')
    for logger in (absl_logging.get_absl_logger(), logging.getLogger('asyncio')):
        logger.addFilter(_is_not_told_again)
    # Without a home directory matplotlib works in a temporary one, and warns about it.
    logging.getLogger('matplotlib').setLevel(logging.ERROR)
    sys.unraisablehook = _tell_of_unraisable
    if _NotForKeras not in sys.meta_path:
        sys.meta_path.insert(0, _NotForKeras)


class _NotForKeras(importlib.abc.MetaPathFinder):
    """Hides matplotlib and scikit-learn while TensorFlow imports Keras.

    Keras would import both, which takes 1.3 s of every start. Nothing here uses what Keras does with them.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Reports both libraries as missing during the import of TensorFlow."""
        tensorflow = sys.modules.get('tensorflow')
        if name in ('matplotlib', 'sklearn') and getattr(tensorflow and tensorflow.__spec__, '_initializing', False):
            raise ModuleNotFoundError(f'{name} is hidden from Keras', name=name)
        return None


def _tell_of_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Prints errors that no code can catch, except one of tensorstore.

    Its threads continue to write a checkpoint after the save was cancelled, and then find the event loop closed.
    """
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def _is_not_told_again(record: logging.LogRecord) -> bool:
    """Drops log records of errors in the threads of Orbax, because the next save or wait raises the same error."""
    if record.name == 'asyncio' and 'exception was never retrieved' in record.getMessage():
        return False
    trace = record.exc_info[2] if record.exc_info else None
    files = (pathlib.Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace))
    return not any('orbax' in file.parts for file in files)
