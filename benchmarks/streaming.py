"""Photographs streamed from files against data on the device: `python -m benchmarks.streaming`.

Three things are measured, in turn and several times over:

- the loader alone, in images a second: files decoded each time, kept on disk, kept in memory, and
  as a plain user of torchvision and DataLoader would read them; then what one image costs a worker;
- where there is no GPU: what a pretended one, which sleeps through its steps, would be left of its
  speed by workers on the other cores;
- training: steps a second of a network of timm with photographs streamed from a warm cache, and
  of the same step on pixels that are on the device already. Their ratio is what streaming leaves.

Epochs count from end to end, so a wait at the beginning of one counts too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate

from benchmarks import photos
from benchmarks.competitions.photos import SHORTER, SIDE, cropped
from benchmarks.contenders.plain import Photographs
from kagglekit import NetworkConfig, devices, files, folders
from kagglekit.augment import ImageAugment, albumentations, training_view
from kagglekit.images import ImageFiles, Keep, folder_classes
from kagglekit.loading import Loader
from kagglekit.randomness import derive, seed_cpu

Epoch = Callable[[int], Iterable[object]]  # its batches


def loader_of(dataset: object, options: argparse.Namespace) -> Loader:
    """Batches for training, on the device."""
    config = NetworkConfig(
        batch_size=options.batch, workers=options.workers, epochs=1 << 20, data=options.data
    )
    return Loader(dataset, config, devices.device(), 0, True)  # type: ignore[arg-type]


def streamed(options: argparse.Namespace, keep: Keep | str) -> Loader:
    """The photographs, decoded as `keep` says."""
    paths, targets, _ = options.photographs
    dataset = ImageFiles(paths, targets, 3, None, cropped(SIDE), keep, SHORTER)  # type: ignore[arg-type]
    return loader_of(dataset, argparse.Namespace(**{**vars(options), "data": "streamed"}))


def resident(options: argparse.Namespace) -> Loader:
    """As many pixels, and the same targets, on the device."""
    targets = torch.from_numpy(options.photographs[1])
    pixels = torch.randint(256, (len(targets), SIDE, SIDE, 3), dtype=torch.uint8)
    rows = TensorDataset(pixels.permute(0, 3, 1, 2), targets)
    return loader_of(rows, argparse.Namespace(**{**vars(options), "data": "resident"}))


def torchvision(options: argparse.Namespace) -> Epoch:
    """Files through torchvision's transforms, as a plain user would read them."""
    paths, targets, _ = options.photographs
    dataset = Photographs(np.array(list(map(str, paths))), targets, True)
    loader = torch.utils.data.DataLoader(
        dataset, options.batch, shuffle=True, num_workers=options.workers, drop_last=True,
        persistent_workers=options.workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    place = devices.device()
    return lambda epoch: ([part.to(place, non_blocking=True) for part in batch] for batch in loader)


@dataclass
class Spent:
    """Seconds of some epochs, from the call to the end of the last step."""

    whole: float = 0.0
    loading: float = 0.0  # of the main process, waiting for batches included
    computing: float = 0.0  # CPU seconds of the main process

    def epoch(self, batches: Iterable[object], step: Callable[[object], object] = id) -> None:
        """Add an epoch."""
        devices.synchronise(devices.device())
        began, used = time.perf_counter(), time.process_time()
        coming = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(coming, None)
            self.loading += time.perf_counter() - asked
            if batch is None:
                break
            step(batch)
        devices.synchronise(devices.device())
        self.whole += time.perf_counter() - began
        self.computing += time.process_time() - used


def learner(options: argparse.Namespace) -> Callable[[list[torch.Tensor]], None]:
    """One step of training: forward, backward, AdamW."""
    import timm

    place, classes = devices.device(), len(options.photographs[2])
    model = timm.create_model(options.model, num_classes=classes)
    model = model.to(place).to(memory_format=torch.channels_last).train()
    forward = devices.compiled(model) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    precision, _ = devices.resolve_precision(options.precision, place)
    loss_of = nn.CrossEntropyLoss()

    def step(batch: list[torch.Tensor]) -> None:
        with devices.autocast(precision, place):
            loss = loss_of(forward(batch[0]), batch[1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def loaders_alone(options: argparse.Namespace) -> None:
    """Images a second of every way to read them; medians, and the range of the repeats."""
    ways: dict[str, Epoch] = {
        "kagglekit, kept in memory": streamed(options, "memory").batches,
        "kagglekit, kept on disk": streamed(options, "disk").batches,
        "kagglekit, decoded each time": streamed(options, "none").batches,
        "torchvision and DataLoader": torchvision(options),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.repeats + 1):  # the first fills caches and starts workers
        for name, epoch in ways.items():
            spent = Spent()
            spent.epoch(epoch(number))
            found[name] += [_images(options) / spent.whole] if number else []
    print("| images a second, no training | median | range |\n|---|---|---|")
    for name, rates in found.items():
        print(f"| {name} | {statistics.median(rates):,.0f} | {_range(rates, ',.0f')} |", flush=True)


def costs(options: argparse.Namespace) -> None:
    """What one image costs a worker, part by part."""
    paths, targets, _ = options.photographs
    kept = {
        keep: ImageFiles(paths, targets, 3, (SIDE, SIDE), None, keep, SHORTER)  # type: ignore[arg-type]
        for keep in ("memory", "disk", "none")
    }
    view, image = cropped(SIDE), kept["disk"]._images.pixels[0]
    usual, alike, seeds = training_view(SIDE), by_albumentations(SIDE), itertools.count()
    items = [torch.from_numpy(view(image, 0)) for _ in range(options.batch)]
    parts: dict[str, Callable[[], object]] = {
        "seeding its draws": lambda: seed_cpu(derive(0, "item", 1, 2)),
        **{f"pixels, keep={keep}": partial(_pixels, data) for keep, data in kept.items()},
        "crop and mirror (albumentations)": lambda: view(image, next(seeds)),
        "training_view": lambda: usual(image, next(seeds)),
        "the same by albumentations": lambda: alike(image, next(seeds)),
        "its share of making a batch": lambda: default_collate(items),
    }
    print("\n| one image, least of 9 in turn | µs |\n|---|---|")
    rounds = [[_seconds(call) for call in parts.values()] for _ in range(10)]  # the first warms up
    for name, least in zip(parts, np.min(rounds[1:], axis=0), strict=True):
        share = options.batch if "batch" in name else 1
        print(f"| {name} | {1e6 * least / share:,.0f} |", flush=True)


def by_albumentations(side: int) -> ImageAugment:
    """What `training_view` does, each step a transform of albumentations."""
    import albumentations as library

    return albumentations(
        library.RandomResizedCrop((side, side), scale=(0.3, 1.0), area_for_downscale="image"),
        library.HorizontalFlip(p=0.5),
        library.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.03, 0.03), p=0.8),
        library.CoarseDropout((1, 1), (0.1, 0.35), (0.1, 0.35), p=0.25),
    )


def _pixels(data: ImageFiles) -> object:
    return data._images.pixels[0]


def _seconds(call: Callable[[], object], count: int = 50) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def training(options: argparse.Namespace) -> None:
    """Rows a second streamed and resident, in turn, and their ratio."""
    step = learner(options)
    ways = {"streamed": streamed(options, "auto").batches, "on device": resident(options).batches}
    for number in range(2):  # fills the cache, starts workers, warms kernels up
        for epoch in ways.values():
            Spent().epoch(epoch(number), step)
    found: dict[str, list[Spent]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name, epoch in ways.items():
            found[name].append(Spent())
            for number in range(options.epochs):
                found[name][-1].epoch(epoch(2 + repeat * options.epochs + number), step)
    images, streams, residents = options.epochs * _images(options), *found.values()
    print("\n| training | images a second | range | ms a batch in the loader | CPU ms a batch |")
    print("|---|---|---|---|---|")
    for name, spents in found.items():
        rates = [images / spent.whole for spent in spents]
        each = 1e3 * options.batch / images
        loading = each * statistics.median(spent.loading for spent in spents)
        computing = each * statistics.median(spent.computing for spent in spents)
        print(f"| {name} | {statistics.median(rates):,.1f} | {_range(rates, ',.1f')} |"
              f" {loading:.2f} | {computing:.1f} |")  # fmt: skip
    for what in ("whole", "computing"):
        ratios = [
            getattr(there, what) / getattr(here, what)
            for here, there in zip(streams, residents, strict=True)
        ]
        speed = "speed" if what == "whole" else "by CPU time of the main process"
        print(f"streamed / on device, {speed}: {statistics.median(ratios):.3f}"
              f" ({_range(ratios, '.3f')})")  # fmt: skip


class Pretended:
    """A device that takes so many seconds a step, and is at most two steps behind."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.busy_until = seconds, 0.0

    def step(self, batch: object) -> None:
        """Begin a step once the one before the last is done."""
        self.busy_until = max(self.busy_until, time.perf_counter()) + self.seconds
        time.sleep(max(self.busy_until - 2 * self.seconds - time.perf_counter(), 0))

    def synchronise(self) -> None:
        """Wait until the last step is done."""
        time.sleep(max(self.busy_until - time.perf_counter(), 0))


def pretended(options: argparse.Namespace) -> None:
    """What is left of a device's speed, were it as fast as that: each step sleeps its time.

    Batches are those of the loader before their pixels become floats, which a GPU does itself.
    """
    stream = streamed(options, "auto").stream()
    passes = itertools.count()
    for _ in range(2):
        list(map(id, stream.batches(next(passes), 0)))
    print("\n| a device of … images a second | is used to | range |\n|---|---|---|")
    for rate in options.pretend:
        device, shares = Pretended(options.batch / rate), []
        for _ in range(options.repeats):
            began = time.perf_counter()
            for _ in range(options.epochs):
                for batch in stream.batches(next(passes), 0):
                    device.step(batch)
                device.synchronise()
            ideal = options.epochs * _images(options) / rate
            shares.append(100 * ideal / (time.perf_counter() - began))
        print(f"| {rate:,} | {statistics.median(shares):.1f} % | {_range(shares, '.1f')} |")


def _images(options: argparse.Namespace) -> int:
    """Images of an epoch, whose last incomplete batch is left out."""
    count = len(options.photographs[0])
    return int(count // options.batch * options.batch)


def _range(values: list[float], form: str) -> str:
    return f"{min(values):{form}}…{max(values):{form}}"


def main() -> None:
    """Print the tables."""
    gpu = devices.has_gpu()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=Path, help="a folder of images a class; else drawn ones")
    parser.add_argument("--rows", type=int, default=4_000 if gpu else 128)
    parser.add_argument("--batch", type=int, default=64 if gpu else 16)
    parser.add_argument("--workers", type=int, default=NetworkConfig().workers if gpu else 1)
    parser.add_argument("--epochs", type=int, default=3 if gpu else 1, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="resnet18", help="of timm")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp16", "fp32"])
    parser.add_argument("--compile", action="store_true", help="compile the network")
    parser.add_argument("--pretend", type=int, nargs="*", default=[500, 1000, 1500, 2000])
    parser.add_argument("--only", choices=["loader", "training", "pretended"], help="a part of it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["KAGGLEKIT_CACHE"] = str(Path(home) / "cache")
        download = Path(home) / "download"
        photos.write(download, options.rows, options.photos)
        options.photographs = folder_classes(download / "train")
        time.sleep(files._RACE_SECONDS + 0.1)  # what was written just now is not kept
        device = devices.describe(devices.device())
        print(f"{device}: {len(options.photographs[0])} photographs, cache in {folders.cache()}\n")
        if options.only in (None, "loader"):
            loaders_alone(options)
            costs(options)
        if options.only in (None, "pretended"):
            pretended(options)
        if options.only in (None, "training"):
            training(options)


if __name__ == "__main__":
    main()
