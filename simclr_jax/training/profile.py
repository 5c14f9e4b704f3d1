"""A profile of some steps of a run, for TensorBoard, xprof or Perfetto."""

import jax


class Profile:
    """Records the steps first to last, counted from 1, of a run.

    Args:
        steps: (first, last); None: nothing is recorded.
        directory: where the profile goes.
    """

    def __init__(self, steps: tuple[int, int] | None = None, directory: str = ''):
        self._steps, self._directory = steps, directory
        self._is_recording = False

    def before(self, step: int, count: int = 1) -> None:
        """To be called before every step, or before `count` steps from that on that are made at once."""
        if self._steps is None:
            return
        if self._is_recording and step > self._steps[1]:
            self._stop()
        elif not self._is_recording and step <= self._steps[0] < step + count:
            jax.profiler.start_trace(self._directory)
            self._is_recording = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_recording = False

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *error) -> None:
        if self._is_recording:
            self._stop()
