"""Digits to practise on: those that scikit-learn ships, or MNIST where the network allows."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from kagglekit import NetworkError, practice


def digits(folder: Path, answers: Path) -> None:
    """1,797 real handwritten digits (UCI, 8 × 8), enlarged to 28 × 28; 1,500 of them to train.

    The 8 × 8 become 20 × 20 in the middle of the picture, as MNIST's own digits are.
    """
    import torch
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=20, mode="bilinear", antialias=True)
    pixels = torch.nn.functional.pad(large, (4, 4, 4, 4)).round().clamp(0, 255)
    _write(folder, answers, pixels.numpy().astype(np.uint8)[:, 0], found.target, train=1500)


def mnist(folder: Path, answers: Path) -> None:
    """MNIST's 60,000 training and 10,000 test digits, through torchvision's downloader.

    Raises NetworkError where they cannot be fetched.
    """
    from torchvision.datasets import MNIST

    with TemporaryDirectory() as downloads:
        try:
            parts = [MNIST(downloads, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise NetworkError(
                "MNIST cannot be fetched: try again with a network, or take the digits that need "
                "none with `kagglekit practice mics_mnist digits`"
            ) from error
        pixels = np.concatenate([part.data.numpy() for part in parts])
        labels = np.concatenate([part.targets.numpy() for part in parts])
    _write(folder, answers, pixels, labels, train=60_000)


def _write(folder: Path, answers: Path, pixels: np.ndarray, labels: np.ndarray, train: int) -> None:
    order = np.random.default_rng(0).permutation(len(pixels))
    columns = pd.DataFrame(pixels[order].reshape(len(pixels), -1)).add_prefix("pixel")
    head = pd.DataFrame({"id": np.arange(len(pixels)), "label": labels[order]})
    table = pd.concat([head, columns], axis=1)
    practice.write(folder, answers, table[:train], table[train:], ["label"])
