"""Measures what the canvases of the feed `decoded` cost in resolution, by their side.

python benchmarks/canvas.py --data-dir TFDS_DATA_DIR [--sides 256 320 384 448 512 640]

Each image of ImageNet's prepared JPEGs gives two 224-pixel crops with the same random boxes, once from the image as it
is and once from its canvas. Prints one JSON line per side:

* whole: share of the images that are not made smaller.
* upsampled, upsampled_in_file: share of the crops with fewer pixels than the view in height or width, from the canvas
  and from the file.
* difference: mean absolute difference of the two crops, of values in [0, 1].
* probe, probe_augmented: accuracy of a classifier that tells a crop of a canvas from one of an image, before and after
  colour and blur. It sees the spectra of both, and is tested on other images, ten-fold. 0.5 is chance.
* bytes: size of a canvas.
"""

import argparse
import json

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from simclr_jax.augment import center, device
from simclr_jax.augment.crop import crop_and_resize, sample_crop_boxes
from simclr_jax.augment.operations import RandomCrop
from simclr_jax.augment.policy import make_policy
from simclr_jax.config import base_config
from simclr_jax.data import images
from simclr_jax.data.sources import load_examples

SIZE, VIEWS, BATCH, BINS = 224, 2, 16, 24


def main():
    """Measures each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', required=True, help="TFDS's directory with imagenet2012")
    parser.add_argument('--sides', type=int, nargs='+', default=[256, 320, 384, 448, 512, 640])
    options = parser.parse_args()
    config = base_config()
    config.data.path = options.data_dir
    files = load_examples(config.data, 'train').content.files
    whole = [images.decode(file) for file in files]
    shapes = np.array([image.shape[:2] for image in whole], np.int32).repeat(VIEWS, axis=0)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    boxes = np.asarray(jax.jit(sample_crop_boxes, static_argnums=3)(keys, *shapes.T, RandomCrop()))
    originals = np.stack([crop(whole[row // VIEWS], *box) for row, box in enumerate(boxes)])
    for side in options.sides:
        found = figures(side, files, boxes, originals)
        print(json.dumps({'side': side, **found, 'upsampled_in_file': upsampled(boxes)}), flush=True)


def crop(image, top, left, height, width):
    """A crop of an image in memory, float32 [SIZE, SIZE, 3] in [0, 1]."""
    view = center._resize(image[top : top + height, left : left + width], SIZE, np.float32(1 / 255))
    return view.clip(0, 1)


def figures(side, files, boxes, originals):
    """The figures of one side."""
    stored = [images.decode_within(file, side) for file in files]
    scale = np.array([np.divide(image.extent, image.size) for image in stored]).repeat(VIEWS, axis=0)
    on_canvas = (boxes * np.tile(scale, 2)).astype(np.float32)
    views = np.concatenate([crops(stored[place : place + BATCH], side, on_canvas, place) for place in starts(files)])
    return {
        'bytes': side * side * 3,
        'whole': round(float(np.mean([image.extent == image.size for image in stored])), 3),
        'upsampled': upsampled(on_canvas),
        'difference': round(float(np.abs(views - originals).mean()), 4),
        'probe': told_apart(views, originals),
        'probe_augmented': told_apart(augmented(views), augmented(originals)),
    }


def starts(rows):
    """First row of each batch."""
    return range(0, len(rows), BATCH)


def crops(stored, side, boxes, place):
    """Crops of a batch of images from their canvases."""
    canvases = np.zeros([len(stored), side, side, 3], np.uint8)
    for canvas, image in zip(canvases, stored, strict=True):
        height, width, _ = image.pixels.shape
        canvas[:height, :width] = image.pixels
    chosen = boxes[VIEWS * place : VIEWS * (place + len(stored))]
    return np.asarray(jax.jit(crop_and_resize, static_argnums=2)(canvases, chosen, SIZE)).clip(0, 1)


def augmented(views):
    """Colour and blur of SimCLR, the same random numbers for every call."""
    policy = make_policy(SIZE, views=('jitter drop blur',))
    apply = jax.jit(lambda rows, keys: device.augment(rows, keys, policy)[:, 0])
    keys = jax.random.split(jax.random.key(1), len(views))
    return np.concatenate([apply(views[n : n + BATCH], keys[n : n + BATCH]) for n in starts(views)])


def upsampled(boxes):
    """Share of the boxes with fewer pixels than a view along a side."""
    return round(float((boxes[:, 2:] < SIZE).any(axis=1).mean()), 3)


def told_apart(views, originals):
    """Accuracy of a logistic regression on spectra. Both views of an image, of both kinds, are in one fold."""
    features = np.concatenate([spectra(views), spectra(originals)])
    kinds = np.arange(len(features)) >= len(views)
    groups = np.tile(np.arange(len(views)) // VIEWS, 2)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return round(float(cross_val_score(classifier, features, kinds, groups=groups, cv=GroupKFold(10)).mean()), 3)


def spectra(views):
    """Logarithms of the mean power in rings of frequencies, [N, BINS]."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE)))
    ring = np.minimum((frequency / 0.5 * BINS).astype(int), BINS - 1).ravel()
    found = []
    for view in views:
        power = np.abs(np.fft.fft2(view.mean(axis=-1))).ravel() ** 2
        found.append(np.log(np.bincount(ring, power, BINS) / np.bincount(ring, minlength=BINS) + 1e-9))
    return np.array(found)


if __name__ == '__main__':
    main()
