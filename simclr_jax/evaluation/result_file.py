"""The file result.json of a work directory, to which several evaluations may add scores."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.config.storage import check_reachable, first_line, storage_errors
from simclr_jax.evaluation.results import Results, Score
from simclr_jax.training import workdir
from simclr_jax.training.lock import Lock
from simclr_jax.training.workdir import clear_place

NAME = 'result.json'
# Seconds to wait for another evaluation that writes its scores.
PATIENCE = 60.0


class ResultFile:
    """The file result.json of a work directory. Several evaluations may add their scores at the same time.

    What cannot be read in the file is set aside when it is opened. Where the file cannot be written, all scores stay in
    memory alone.

    Args:
        directory: Work directory, local or gs://.
        home: Name of the data set of the pretraining. Its scores with all labels are also on the top level of the
            file, under names such as 'knn_top1'.
        say: Function that receives lines for the user.

    Attributes:
        error: Why the newest scores are not in the file. None if they are.
    """

    def __init__(self, directory: str, home: str, say: Callable[[str], None] = print):
        self._directory, self._home, self._say = directory, home, say
        self._results: Results | None = None
        self.error: Exception | None = None
        with self._noting('nothing is kept in this directory, the scores are only printed'), self._lock():
            self._results = self._read()
        if self.error:
            with contextlib.suppress(ConfigError, OSError):
                self._results = read_results(directory)
        self._first_step = self._results and self._results.step

    def add(self, found: Results) -> Results:
        """Adds scores to those in the file, and writes it.

        Scores of an earlier checkpoint go. Scores of the same checkpoint stay, unless they are among the new ones.

        Args:
            found: New scores.

        Returns:
            All scores of this checkpoint.
        """
        self._results = found.joined_to(self._results)
        with self._noting('the newest scores are only printed'), self._lock():
            # Another evaluation may have added scores since.
            others = self._read()
            if others and others.step > found.step and others.step != self._first_step:
                raise ConfigError([f'it holds scores of step {others.step} now, a newer checkpoint'])
            self._results = self._results.joined_to(others)
            write_results(self._directory, self._results, self._home)
        self._results = dataclasses.replace(self._results, not_kept=self.error)
        return self._results

    def _lock(self) -> Lock:
        return Lock(self._directory, 'result', wait=PATIENCE, say=self._say)

    @contextlib.contextmanager
    def _noting(self, consequence: str) -> Iterator[None]:
        """Notes whether the block fails. If it does, a line says so."""
        path = epath.Path(self._directory) / NAME
        try:
            yield
            self.error = None
        except (ConfigError, OSError, *storage_errors()) as error:
            if self.error is None:
                why = getattr(error, 'strerror', None) or first_line(error)
                self._say(f'{path} cannot be written ({why}): {consequence}.')
            self.error = error
            if isinstance(error, OSError) and error.errno and not error.filename:
                # The system's error of a write names no file.
                self.error = OSError(error.errno, error.strerror, str(path))

    def _read(self) -> Results | None:
        """The readable scores of the file. If there are others, the file is set aside."""
        path = epath.Path(self._directory) / NAME
        clear_place(path, self._say)
        if not path.exists():
            return None
        results, damage = _parse(path.read_bytes())
        if damage:
            kept = len(results.scores) if results else 0
            aside = workdir.set_aside(path, 'damaged')
            self._say(f'{path} cannot be read ({damage}); {kept} scores stay, the original is {aside.name}.')
        return results


def write_results(directory: str, results: Results, home: str) -> None:
    """Writes result.json.

    Args:
        directory: Work directory, local or gs://.
        results: All scores of its checkpoint.
        home: Name of the data set of the pretraining, see `ResultFile`.
    """
    headlines = {}
    for score in results.scores:
        if score.encoder == 'simclr' and score.dataset == home and score.labels in ('all', ''):
            headlines.setdefault(f'{score.protocol}_{score.metric}', score.value)
    workdir.write_result(
        directory,
        {
            'step': results.step,
            **headlines,
            'datasets': results.datasets,
            'scores': [dataclasses.asdict(score) for score in results.scores],
        },
    )


def read_results(directory: str) -> Results | None:
    """Reads the scores in the result.json of a work directory. None if there is no such file.

    Raises:
        ConfigError: The file is damaged, or was written by another version of this program.
    """
    check_reachable(directory)
    path = epath.Path(directory) / NAME
    if not path.exists():
        return None
    results, damage = (None, 'it is a directory') if path.is_dir() else _parse(path.read_bytes())
    if damage:
        raise ConfigError(
            [
                f'{path} is damaged, or was written by another version of this program ({damage}); run: '
                f'simclr evaluate --workdir={directory}'
            ]
        )
    return results


def _parse(content: bytes) -> tuple[Results | None, str]:
    """The readable scores of a result.json, and what is wrong with the others. '' means that all are readable."""
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        return None, first_line(error)
    if not isinstance(found, dict) or type(found.get('step')) is not int:
        return None, 'it has no step'
    named, scores = found.get('datasets'), found.get('scores')
    datasets = {name: text for name, text in named.items() if isinstance(text, str)} if isinstance(named, dict) else {}
    read = [_score(fields) for fields in scores] if isinstance(scores, list) else [None]
    damaged = [f'{read.count(None)} of its scores' if None in read else '', 'its datasets' if datasets != named else '']
    kept = tuple(score for score in read if score is not None)
    return Results(found['step'], kept, datasets), ' and '.join(filter(None, damaged))


def _score(fields: Any) -> Score | None:
    """The score of an entry of the file. None if it is no score of this version."""
    texts = ('dataset', 'protocol', 'detail', 'labels', 'metric', 'encoder')
    try:
        score = Score(**fields)
        numbers = [score.value, *(x for x in (score.low, score.high, score.deviation) if x is not None)]
        # An integer may be too large for a float, which OverflowError tells.
        is_good = all(type(number) is float or (type(number) is int and float(number) < math.inf) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if is_good and all(isinstance(getattr(score, name), str) for name in texts) else None
