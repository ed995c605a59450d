"""Data sets as device arrays, split once and for all."""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from lopt.errors import InputError, needs_extra
from lopt.names import unknown

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it
FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Of the unpacked files, in the order of the names: packing them anew changes nothing that matters.
FASHION_MNIST_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
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
    with needs_extra("data"):
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


View = Callable[[Float[np.ndarray, "images 28 28"]], Float[np.ndarray, "images side side"]]


@functools.cache
def fashion_mnist(size: int = 28) -> Images:
    r"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of clothing in ten classes; the last 10,000 of the first file validate.

    A smaller image $AXA^\top$ has in every pixel the mean of $X$ over the pixel's area, where $A_{ij}$ is the share of source pixel $j$
    in target pixel $i$: plain block means for 14 and 7 a side; for 8, whose pixels are 3.5 wide, every fourth source pixel is halved.

    Args:
        size: pixels a side: 28, 14, 8 or 7.

    Raises:
        MissingDataError: if its files are not on this machine.
        InputError: if a file is damaged, or for another size.
    """
    if size not in (28, 14, 8, 7):
        raise InputError(f"size is {size}; Fashion-MNIST comes in 28, 14, 8 or 7 pixels a side.")
    return _fashion_mnist(lambda images: area_means(images, size))


@functools.cache
def fashion_mnist_crops() -> Images:
    """The middle 16x16 pixels of every Fashion-MNIST image at 8x8, by block means: texture without the outline. Splits as `fashion_mnist`."""
    return _fashion_mnist(lambda images: area_means(images[:, 6:22, 6:22], 8))


@functools.cache
def fashion_mnist_edges() -> Images:
    """How steep every Fashion-MNIST image is at 28x28, then 8x8 by area means: outline without brightness. Splits as `fashion_mnist`.

    The length of the gradient by central differences, capped at 255.
    """
    return _fashion_mnist(lambda images: area_means(np.minimum(np.hypot(*np.gradient(images, axis=(1, 2))), 255.0), 8))


def area_means(images: Float[np.ndarray, "images n n"], size: int) -> Float[np.ndarray, "images size size"]:
    """Shrink square images by averaging over areas; see `fashion_mnist`."""
    n = images.shape[1]
    edges = np.arange(size + 1) * (n / size)
    share = np.clip(np.minimum(edges[1:, None], np.arange(1, n + 1)) - np.maximum(edges[:-1, None], np.arange(n)), 0, 1)
    share = (share * (size / n)).astype(np.float32)
    return share @ images @ share.T


def _fashion_mnist(view: View) -> Images:
    folder = fashion_mnist_folder()
    if folder is None:
        raise MissingDataError(
            "Fashion-MNIST is not on this machine: install the Debian package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or put its four gzip files into $LOPT_DATA/fashion-mnist."
        )
    train_images, train_labels, test_images, test_labels = _fashion_mnist_files(folder)

    def examples(images: np.ndarray, labels: np.ndarray) -> Examples:
        parts = [view(images[i : i + 5_000].astype(np.float32)) for i in range(0, len(images), 5_000)]
        pixels = np.concatenate([p.reshape(len(p), -1).round().astype(np.uint8) for p in parts])
        return Examples(pixels, labels.astype(np.int32))

    return Images(
        examples(train_images[:50_000], train_labels[:50_000]),
        examples(train_images[50_000:], train_labels[50_000:]),
        examples(test_images, test_labels),
        classes=10,
        brightest=255,
    )


@functools.lru_cache(maxsize=1)
def _fashion_mnist_files(folder: Path) -> tuple[np.ndarray, ...]:
    """The four files, read and checked once."""
    return tuple(_read_idx(folder / n, s) for n, s in zip(FASHION_MNIST_FILES, FASHION_MNIST_SHA256, strict=True))


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """An IDX file of unsigned bytes: two zero bytes, type 8, rank, big-endian sizes, data."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}. Install it again.") from error
    rank = raw[3] if len(raw) > 4 else 0
    shape = tuple(int(n) for n in np.frombuffer(raw, ">i4", count=rank, offset=4)) if rank else ()
    if raw[:3] != b"\x00\x00\x08" or not shape or len(raw) != 4 + 4 * rank + int(np.prod(shape)):
        raise InputError(f"{path} is not an IDX file of bytes, or is truncated. Install it again.")
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise InputError(f"{path} is damaged: its SHA-256 is not that of Fashion-MNIST. Install it again.")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


# Image data sets by name, all cached.
IMAGES: dict[str, Callable[[], Images]] = {
    "digits": digits,
    "fashion_28": functools.partial(fashion_mnist, 28),
    "fashion_14": functools.partial(fashion_mnist, 14),
    "fashion_8": functools.partial(fashion_mnist, 8),
    "fashion_8_crops": fashion_mnist_crops,
    "fashion_8_edges": fashion_mnist_edges,
}


def images(name: str) -> Images:
    """A data set of `IMAGES` by its name.

    Raises:
        InputError: for an unknown name, with the nearest ones.
        MissingDataError: if its files are not on this machine.
    """
    if name not in IMAGES:
        raise InputError(unknown("image data set", name, IMAGES))
    return IMAGES[name]()


def only_classes(images: Images, classes: Sequence[int]) -> Images:
    """The examples of some classes, which become 0, 1, ... in the order given."""
    if len(set(classes)) != len(classes) or len(classes) < 2 or not all(0 <= c < images.classes for c in classes):
        raise InputError(
            f"classes is {list(classes)}; it must be two or more different numbers from 0 to {images.classes - 1}."
        )
    numbers = np.full(images.classes, -1, np.int32)
    numbers[list(classes)] = np.arange(len(classes))

    def chosen(examples: Examples) -> Examples:
        labels = numbers[np.asarray(examples.labels)]
        return Examples(np.asarray(examples.images)[labels >= 0], labels[labels >= 0])

    train, valid, test = (chosen(e) for e in images[:3])
    return Images(train, valid, test, len(classes), images.brightest)


def with_label_noise(images: Images, share: float, *, seed: int = 0) -> Images:
    """Every training label replaced, with probability `share`, by a class drawn uniformly; the other splits stay clean."""
    if not 0.0 <= share <= 1.0:
        raise InputError(f"share is {share}; it must be from 0 to 1.")
    labels = np.asarray(images.train.labels)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.integers(0, images.classes, labels.shape).astype(labels.dtype)
    noisy = np.where(rng.random(labels.shape) < share, drawn, labels)
    return images._replace(train=images.train._replace(labels=noisy))
