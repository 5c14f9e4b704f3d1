"""The file metrics.jsonl of a work directory: rows of scalars, which survive damage to their neighbours."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from simclr_jax.config.whole_file import write_whole
from simclr_jax.training.growing import GrowingFile
from simclr_jax.training.workdir import set_aside


class MetricsFile:
    """The file `metrics.jsonl`: one JSON object per line, with 'step' and scalars. A step may have several rows.

    Args:
        workdir: Directory of the file, local or gs://.
    """

    def __init__(self, workdir: str):
        self._path = epath.Path(workdir) / 'metrics.jsonl'
        self._rows = GrowingFile(self._path)

    def forget_after(self, step: int, say: Callable[[str], None] = print) -> None:
        """Drops the rows after a step and an incomplete last line. A resumed run writes these rows again.

        Nothing else is lost. If lines cannot be read, the original stays as `metrics.jsonl.damaged`. If a run starts
        at step 0 again, it stays as `metrics.jsonl.old`.

        Args:
            step: Step of the state from which the run resumes.
            say: Function that receives lines for the user.
        """
        self._rows = GrowingFile(self._path)
        if not self._path.exists():
            return
        if self._path.is_dir():
            say(f'{self._path} is a directory; it is {set_aside(self._path, "damaged").name} now.')
            return
        found, damaged, is_cut = _parse(self._path.read_bytes())
        rows = [row for row in found if row['step'] <= step]
        if damaged:
            aside = set_aside(self._path, 'damaged')
            say(f'{self._path}: {damaged} lines cannot be read; {len(rows)} rows stay, the original is {aside.name}.')
        elif step == 0 and len(rows) < len(found):
            say(f'{self._path} has rows up to step {found[-1]["step"]}; it is {set_aside(self._path, "old").name} now.')
        elif len(rows) == len(found) and not is_cut:
            return
        write_whole(self._path, ''.join(json.dumps(row) + '\n' for row in rows))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends a row. Numbers that are not finite become null."""
        row = {name: float(f'{value:.7g}') if math.isfinite(value) else None for name, value in scalars.items()}
        self._rows.append(json.dumps({'step': step, **row}).encode() + b'\n')

    def flush(self) -> None:
        """Writes what a storage such as gs:// does not have yet."""
        self._rows.flush()


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. Lines that cannot be read are left out, and a missing file has no rows."""
    file = epath.Path(path)
    return _parse(file.read_bytes())[0] if file.exists() and not file.is_dir() else []


def _parse(content: bytes) -> tuple[list[dict[str, Any]], int, bool]:
    """The rows, the number of damaged lines, and whether the last line has no end.

    A last line without an end that is no row was cut short by the end of its process. It does not count as damaged.
    """
    *lines, last = content.split(b'\n')
    rows = [_row(line) for line in lines]
    found = [row for row in (*rows, _row(last)) if row is not None]
    return found, rows.count(None), bool(last)


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line. None if the line is no JSON object with an integer 'step'."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get('step')) is int else None
