"""A progress bar for images that are encoded."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def images_bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal, in the first process of a job.

    Args:
        name: Name of the split.
        total: Images to encode.

    Yields:
        A function to call with the number of newly encoded images.
    """
    from rich import markup, progress

    from simclr_jax import distributed

    columns = (
        progress.TextColumn(markup.escape(name)),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn('{task.fields[rate]:,.0f} images/s'),
        progress.TimeRemainingColumn(),
    )
    is_shown = sys.stdout.isatty() and distributed.is_first()
    with progress.Progress(*columns, transient=True, disable=not is_shown) as display:
        task = display.add_task('', total=total, rate=0.0)
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            display.update(task, completed=done, rate=done / (time.perf_counter() - started))

        yield advance
