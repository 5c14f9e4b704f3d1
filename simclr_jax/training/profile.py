"""A profile of some steps of a run, for TensorBoard, xprof or Perfetto."""

import jax


class Profile:
    """Records steps of a run.

    Args:
        steps: First and last step to record, counted from 1. None records nothing.
        directory: Directory that the profile is written to.
    """

    def __init__(self, steps: tuple[int, int] | None = None, directory: str = ''):
        self._steps, self._directory = steps, directory
        self._is_recording = False

    def before(self, step: int) -> None:
        """Starts or stops the recording. To be called before every step, with the number of that step."""
        if self._steps is None:
            return
        if self._is_recording and step > self._steps[1]:
            self._stop()
        elif not self._is_recording and step == self._steps[0]:
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
