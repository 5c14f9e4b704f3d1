"""Reports of a run: lines on the console, rows in metrics.jsonl, and TensorBoard events where it is installed."""

import datetime
import sys
from collections.abc import Mapping

import numpy as np
from etils import epath

from simclr_jax import distributed
from simclr_jax.training.events import EventFile
from simclr_jax.training.metrics_file import MetricsFile
from simclr_jax.training.workdir import clear_place


class Log:
    """Writes scalars and pictures to all places, and shows progress. Only the first process of a job does this.

    Args:
        workdir: Directory of the run, local or gs://. None writes no files.
        total_steps: Updates of the run.
        tensorboard: Whether to write TensorBoard events, if the package `tensorboard` is installed.
    """

    def __init__(self, workdir: str | None, total_steps: int, *, tensorboard: bool = False):
        self._total_steps = total_steps
        self._file, self._events, self._console = None, None, _Silence()
        if not distributed.is_first():
            return
        self._console = _Bar(total_steps) if sys.stdout.isatty() else _Lines()
        if workdir:
            self._file = MetricsFile(workdir)
        if workdir and tensorboard:
            directory = epath.Path(workdir) / 'tensorboard'
            clear_place(directory, self.say, of_directory=True)
            try:
                self._events = EventFile(str(directory))
            except ModuleNotFoundError as error:
                package = str(error.name).partition('.')[0]
                self.say(f'No TensorBoard events: the package {package} is not installed.')

    def say(self, text: str) -> None:
        """Writes a line for the user."""
        self._console.say(text)

    def resume(self, step: int) -> None:
        """Continues the log of a run that resumes at this step."""
        if self._file:
            self._file.forget_after(step, self.say)
        self._console.resume(step)

    def advance(self, step: int) -> None:
        """Moves the progress display to a number of updates done."""
        self._console.advance(step)

    def progress(self, step: int, scalars: Mapping[str, float], seconds_left: float) -> None:
        """Writes metrics of the training up to a step, and a line on the console.

        Args:
            step: Number of updates done.
            scalars: Metrics by name, see `Meter.read`.
            seconds_left: Estimate of the rest of the run, seconds.
        """
        self.scalars(step, scalars)
        left = datetime.timedelta(seconds=round(seconds_left))
        self._console.say(f'step {step}/{self._total_steps}  ' + _summary(scalars) + f'  left {left}')

    def evaluation(self, step: int, shares: Mapping[str, float]) -> None:
        """Writes the result of an online evaluation, shares from 0 to 1, and a line on the console."""
        self.scalars(step, shares)
        found = '  '.join(f'{name} {value:.2%}' for name, value in shares.items())
        self.say(f'step {step}/{self._total_steps}  {found}')

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a row of metrics."""
        if self._file:
            self._file.write(step, scalars)
        if self._events:
            self._events.scalars(step, scalars)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures [N, H, W, 3] in [0, 1] to TensorBoard."""
        if self._events:
            self._events.images(step, images)

    def flush(self) -> None:
        """Writes all rows and events so far to a storage such as gs://. Other files have them already."""
        for file in (self._file, self._events):
            if file:
                file.flush()

    def close(self) -> None:
        """Ends the progress display, and writes what `flush` writes."""
        self._console.close()
        self.flush()


def _summary(scalars: Mapping[str, float]) -> str:
    """The line on the console: those of its figures that `scalars` contains."""
    formats = {
        'epoch': 'epoch {:.2f}',
        # In pretraining 'loss' also contains the probe's. The contrastive loss alone is the one to watch.
        'contrast_loss' if 'contrast_loss' in scalars else 'loss': 'loss {:.4f}',
        'contrast_accuracy': 'contrast {:.1%}',
        'probe_accuracy': 'probe {:.1%}',
        'accuracy': 'accuracy {:.1%}',
        'agreement': 'agreement {:.1%}',
        'teacher_distance': 'distance {:.3f}',
        'effective_rank': 'rank {:.1f}',
        'z_std': 'std {:.3f}',
        'learning_rate': 'lr {:.4g}',
        'images_per_second': '{:.0f} images/s',
        'flops_utilization': 'MFU {:.1%}',
        'data_wait_share': 'waiting {:.0%}',
        'memory_gib': '{:.2f} GiB',
    }
    return '  '.join(form.format(scalars[name]) for name, form in formats.items() if name in scalars)


class _Silence:
    """No output, for all processes except the first."""

    def say(self, text: str) -> None:
        pass

    def resume(self, step: int) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines(_Silence):
    """Plain lines, for files and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)


class _Bar:
    """A progress bar below the lines, for terminals. Its clock starts with the first step that is done."""

    def __init__(self, total_steps: int):
        from rich import progress

        self._progress = progress.Progress(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        self._task = self._progress.add_task('', start=False, total=total_steps)
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, emoji=False)

    def resume(self, step: int) -> None:
        self._progress.reset(self._task, start=False, completed=step)

    def advance(self, step: int) -> None:
        self._progress.start_task(self._task)
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        self._progress.stop()
