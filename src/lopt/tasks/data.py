"""Data sets as device arrays, split once and for all."""

from __future__ import annotations

import functools
import gzip
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int, UInt8

from lopt.errors import InputError

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it
FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class MissingDataError(InputError):
    """A data set is not on this machine; the message says how to get it."""


class Examples(NamedTuple):
    """Images, one row each, and their labels."""

    images: UInt8[Array | np.ndarray, "examples pixels"]
    labels: Int[Array | np.ndarray, " examples"]


class Images(NamedTuple):
    """An image classification data set; the splits are disjoint."""

    train: Examples
    valid: Examples
    test: Examples
    classes: int
    brightest: int  # the largest pixel value


@functools.cache
def digits() -> Images:
    """scikit-learn's bundled digits: 1,797 real 8x8 images in ten classes, split 1197/300/300 by a fixed permutation."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))
    images, labels = pixels.astype(np.uint8)[order], classes.astype(np.int32)[order]
    cuts = np.split(np.arange(len(order)), [1197, 1497])
    train, valid, test = (Examples(images[c], labels[c]) for c in cuts)
    return Images(train, valid, test, classes=10, brightest=16)


def fashion_mnist_folder() -> Path | None:
    """The folder that holds Fashion-MNIST's four files: `$LOPT_DATA/fashion-mnist`, else the Debian package's; `None` if neither."""
    places = [Path(os.environ["LOPT_DATA"]) / "fashion-mnist"] if "LOPT_DATA" in os.environ else []
    for place in (*places, FASHION_MNIST_FOLDER):
        if all((place / name).is_file() for name in FASHION_MNIST_FILES):
            return place
    return None


@functools.cache
def fashion_mnist(size: int = 28) -> Images:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of clothing in ten classes; the last 10,000 of the first file validate.

    Args:
        size: pixels a side: 28, 14 or 7, the smaller ones by averaging blocks.

    Raises:
        MissingDataError: if its files are not on this machine.
    """
    if size not in (28, 14, 7):
        raise InputError(f"size is {size}; Fashion-MNIST comes in 28, 14 or 7 pixels a side.")
    folder = fashion_mnist_folder()
    if folder is None:
        raise MissingDataError(
            "Fashion-MNIST is not on this machine: install the Debian package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or put its four gzip files into $LOPT_DATA/fashion-mnist."
        )
    train_images, train_labels, test_images, test_labels = (_read_idx(folder / n) for n in FASHION_MNIST_FILES)

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        block = 28 // size
        blocks = images.reshape(len(images), size, block, size, block)
        pooled = blocks.mean((2, 4)).round().astype(np.uint8) if block > 1 else images
        return Examples(pooled.reshape(len(images), size * size), labels.astype(np.int32))

    return Images(
        examples(train_images[:50_000], train_labels[:50_000]),
        examples(train_images[50_000:], train_labels[50_000:]),
        examples(test_images, test_labels),
        classes=10,
        brightest=255,
    )


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zero bytes, type 8, rank, big-endian sizes, data."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}. Install it again.") from error
    rank = raw[3] if len(raw) > 4 else 0
    shape = tuple(int(n) for n in np.frombuffer(raw, ">i4", count=rank, offset=4)) if rank else ()
    if raw[:3] != b"\x00\x00\x08" or not shape or len(raw) != 4 + 4 * rank + int(np.prod(shape)):
        raise InputError(f"{path} is not an IDX file of bytes, or is truncated. Install it again.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
