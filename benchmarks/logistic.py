"""Measures seconds of linear evaluation beside scikit-learn: choice of l2 on validation examples, then a refit.

python benchmarks/logistic.py --examples 40000
python benchmarks/logistic.py --examples 40000 --train TRAIN.npz --test TEST.npz

TRAIN.npz and TEST.npz are features as `simclr embed` writes them. Without them the features are made up: 512 correlated
values, in 10 classes that overlap. Each contestant is its own process and gets the same rows: `--examples` to train on
and a quarter as many to validate on. scikit-learn starts each strength at zero, as a grid search does (`sklearn_cold`),
or at the solution before it (`sklearn_warm`). Prints one JSON line per contestant: seconds from arrays on the host to
the refitted classifier, compilation included, the ratio of its seconds / ours, and its accuracies.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
import warnings

import numpy as np

from simclr_jax.probes.logistic import LAMBDAS, accuracy, fit_path

CONTESTANTS = ('simclr_jax', 'sklearn_warm', 'sklearn_cold')
MAX_ITERATIONS = 1000
# Width and number of classes of the made-up features.
WIDTH, CLASSES = 512, 10


def main():
    """Measures all contestants, or one of them alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--train', type=pathlib.Path, help='features to train and validate on')
    parser.add_argument('--test', type=pathlib.Path, help='features to report on')
    parser.add_argument('--examples', type=int, default=10000, help='training examples')
    parser.add_argument(
        '--lambdas', type=int, default=len(LAMBDAS), help='number of strengths, evenly spaced among the 45'
    )
    parser.add_argument('--contestant', choices=CONTESTANTS, help='measure only this one')
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options)))
    else:
        compare(options)


def compare(options):
    """Prints one line per contestant, with its seconds / ours."""
    ours = None
    for name in CONTESTANTS:
        command = [sys.executable, __file__, *sys.argv[1:], '--contestant', name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        ours = ours or figures['seconds']
        print(json.dumps(figures | {'seconds_over_ours': round(figures['seconds'] / ours, 2)}), flush=True)


def measure(options):
    """Measures the seconds of one contestant and its accuracies."""
    train, validation, test = read(options)
    lambdas = np.array(LAMBDAS)[np.linspace(0, len(LAMBDAS) - 1, options.lambdas).round().astype(int)]
    contestant = {'simclr_jax': simclr_jax, 'sklearn_warm': sklearn_warm, 'sklearn_cold': sklearn_cold}
    start = time.perf_counter()
    figures, classifier_accuracy = contestant[options.contestant](train, validation, lambdas.tolist())
    seconds = time.perf_counter() - start
    return {
        'contestant': options.contestant,
        'examples': options.examples,
        'width': train[0].shape[1],
        'lambdas': options.lambdas,
        'seconds': round(seconds, 2),
        **figures,
        'test_accuracy': round(classifier_accuracy(*test), 4),
    }


def read(options):
    """Reads or makes (features, labels) for training, for validation and for the test."""
    needed = options.examples + options.examples // 4
    if options.train and options.test:
        with np.load(options.train) as train, np.load(options.test) as test:
            features, labels = train['features'], train['labels']
            test = test['features'], test['labels']
    else:
        features, labels = made_up(needed, seed=0)
        test = made_up(10_000, seed=1)
    if needed > len(labels):
        raise SystemExit(f'--examples {options.examples} needs {needed} rows, {options.train} has {len(labels)}')
    rows = np.random.default_rng(0).permutation(len(labels))
    chosen = (rows[: options.examples], rows[options.examples : needed])
    return *((features[part], labels[part]) for part in chosen), test


def made_up(size, seed):
    """Makes features like those behind a ReLU and a mean: not negative, correlated, with few large directions."""
    shared = np.random.default_rng(7)
    directions = np.linalg.qr(shared.normal(size=(WIDTH, WIDTH)))[0] * np.arange(1, WIDTH + 1)[:, None] ** -0.75
    means = shared.normal(size=(CLASSES, WIDTH))
    own = np.random.default_rng(seed)
    labels = own.integers(CLASSES, size=size)
    latent = own.normal(size=(size, WIDTH)) + 0.08 * means[labels]
    return np.maximum(latent @ directions + 0.1, 0).astype(np.float32), labels


def simclr_jax(train, validation, lambdas):
    """Fits by this package: L-BFGS along the principal axes."""
    path = fit_path(*train, *validation, int(train[1].max()) + 1, lambdas=lambdas, max_iterations=MAX_ITERATIONS)
    figures = {
        'iterations': sum(path.iterations),
        'unfinished': len(path.unfinished),
        'l2': path.l2,
        'validation_accuracy': round(max(path.validation_score), 4),
    }
    return figures, lambda features, labels: accuracy(path.weights, features, labels)


def sklearn_warm(train, validation, lambdas):
    """Fits by scikit-learn, each strength from the solution before it."""
    return sklearn_path(train, validation, lambdas, warm_start=True)


def sklearn_cold(train, validation, lambdas):
    """Fits by scikit-learn, each strength from zero."""
    return sklearn_path(train, validation, lambdas, warm_start=False)


def sklearn_path(train, validation, lambdas, *, warm_start):
    """Fits LogisticRegression by L-BFGS with its own tolerance, once per strength and once to all rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # The figures count unfinished fits instead.
    warnings.simplefilter('ignore', ConvergenceWarning)
    model = LogisticRegression(solver='lbfgs', max_iter=MAX_ITERATIONS, warm_start=warm_start)
    scores, iterations = [], []
    for l2 in lambdas:
        model.set_params(C=1 / l2).fit(*train)
        scores.append(model.score(*validation))
        iterations.append(int(model.n_iter_[0]))
    chosen = int(np.argmax(scores))
    everyone = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    model.set_params(C=1 / lambdas[chosen]).fit(*everyone)
    figures = {
        'iterations': sum(iterations),
        'unfinished': sum(spent >= MAX_ITERATIONS for spent in iterations),
        'l2': lambdas[chosen],
        'validation_accuracy': round(scores[chosen], 4),
    }
    return figures, model.score


if __name__ == '__main__':
    main()
