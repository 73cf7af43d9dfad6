from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from kagglekit import augment, loading
from kagglekit.data import Split
from kagglekit.errors import UserError
from kagglekit.images import ImageFiles
from kagglekit.loading import Loader
from kagglekit.recipe import Member
from tests.engine import (
    CPU,
    answers,
    classifier,
    fitted,
    member,
    on_one_thread,  # noqa: F401
    pictures,
    settings,
)


class Noisy(Dataset[Any]):
    """Rows with noise from all three global generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> Any:
        noise = np.random.rand(2) + torch.rand(2, dtype=torch.float64).numpy()
        return torch.tensor([row, *noise])


def loader(dataset: Any, training: bool = True, seed: int = 0, **knobs: Any) -> Loader:
    return Loader(dataset, settings(**{"batch_size": 16, **knobs}), CPU, seed, training)


def rows(of: Loader, epoch: int) -> list[int]:
    return [int(row) for batch in of.batches(epoch) for row in batch[0][:, 0]]


NUMBERED = TensorDataset(torch.arange(40.0)[:, None].expand(40, 2).contiguous())


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = loader(NUMBERED)
    later = rows(first, 3)
    torch.manual_seed(5)
    assert rows(loader(NUMBERED), 3) == later
    assert rows(first, 3) == later
    assert rows(first, 4) != later
    assert rows(loader(NUMBERED, seed=1), 3) != later


def test_training_sees_whole_batches_of_different_rows() -> None:
    seen = rows(loader(NUMBERED), 0)
    assert len(seen) == len(set(seen)) == 32


def test_balanced_sampling_shows_every_class_equally_often() -> None:
    classes = torch.tensor([0] * 30 + [1] * 6 + [2] * 4)
    scarce = TensorDataset(NUMBERED.tensors[0], classes)
    balanced = loader(scarce, sampling="balanced", batch_size=40)
    drawn = rows(balanced, 1)
    counts = torch.bincount(classes[drawn])
    assert counts.max() - counts.min() <= 2
    assert len(set(drawn)) > 20  # none twice before all of its class have come
    assert {row for row in drawn if row >= 30} == set(range(30, 40))
    assert rows(loader(scarce, sampling="balanced", batch_size=40), 1) == drawn != rows(balanced, 2)
    assert rows(loader(scarce, training=False, sampling="balanced"), 1) == list(range(40))
    with pytest.raises(UserError, match="needs classes"):
        rows(loader(NUMBERED, sampling="balanced"), 1)


def test_prediction_sees_every_row_in_order() -> None:
    for data in ("resident", "streamed"):
        assert rows(loader(NUMBERED, training=False, data=data), 0) == list(range(40))


@pytest.mark.parametrize("workers", [1, 2])
def test_random_items_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    expected, found = loader(Noisy()), loader(Noisy(), workers=workers)
    for epoch in (0, 1):
        one = torch.cat([batch[0] for batch in expected.batches(epoch)])
        other = torch.cat([batch[0] for batch in found.batches(epoch)])
        assert torch.equal(one, other)
    assert len(one[:, 1].unique()) == len(one)  # each row has draws of its own
    again = torch.cat([batch[0] for batch in expected.batches(0)])
    assert not torch.equal(again.sort(0)[0], one.sort(0)[0])  # drawn anew in every epoch


def test_streaming_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    list(loader(Noisy()).batches(0))
    assert (torch.rand(1), np.random.rand()) == expected


class Counted(Dataset[Any]):
    """Numbered rows; counts, over all processes, how often one was looked at."""

    def __init__(self, rows: int = 40) -> None:
        self.rows, self.looks = rows, torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        self.looks += 1
        return torch.tensor([row, os.getpid()])


def waited_for(truth: Callable[[], bool], seconds: float = 60) -> bool:
    began = time.monotonic()
    while not truth() and time.monotonic() - began < seconds:
        time.sleep(0.01)
    return truth()


def test_workers_begin_the_next_epoch_while_the_main_process_is_at_the_end_of_this_one() -> None:
    data = Counted()
    training = loader(data, workers=1, epochs=2)
    training.batches, data.looks.zero_()  # one is looked at for its shape
    rows(training, 0)
    assert waited_for(lambda: int(data.looks) == 64)  # two batches ahead
    seen = int(data.looks)
    assert rows(training, 1) == rows(loader(NUMBERED), 1)
    assert int(data.looks) == seen  # and none beyond the last epoch


def test_prediction_goes_on_by_itself_only_where_it_was_asked_for_again() -> None:
    data = Counted()
    watched = loader(data, training=False, workers=1, batch_size=8)
    watched.batches, data.looks.zero_()  # one is looked at for its shape
    for passes, looks in ((1, 40), (2, 96), (3, 136)):
        assert rows(watched, 0) == list(range(40))
        assert waited_for(lambda looks=looks: int(data.looks) == looks), passes  # type: ignore[misc]


def test_workers_live_from_epoch_to_epoch() -> None:
    training = loader(Counted(), workers=2)
    processes = {int(row) for epoch in range(3) for batch in training.batches(epoch) for row in
                 batch[0][:, 1]}  # fmt: skip
    assert len(processes) == 2
    assert os.getpid() not in processes


@pytest.mark.parametrize("workers", [0, 2])
def test_any_batch_can_come_next(workers: int) -> None:
    expected = {epoch: rows(loader(NUMBERED, batch_size=8), epoch) for epoch in range(3)}
    streamed = loader(Counted(), workers=workers, batch_size=8)

    def taken(epoch: int, first: int, last: int) -> list[int]:
        batches = itertools.islice(streamed.batches(epoch, first), last - first)
        return [int(row) for batch in batches for row in batch[0][:, 0]]

    for epoch, first, last in ((0, 0, 2), (0, 2, 5), (1, 0, 1), (2, 3, 5), (0, 1, 4), (0, 0, 5)):
        assert taken(epoch, first, last) == expected[epoch][8 * first : 8 * last]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_is_raised_each_time_and_what_comes_before_it_is_given(workers: int) -> None:
    class Faulty(Counted):
        def __getitem__(self, row: int) -> Any:
            if row == 12:
                raise UserError("row 12 is broken")
            return super().__getitem__(row)

    faulty = loader(Faulty(), training=False, workers=workers, batch_size=8)
    for _ in range(2):
        batches = faulty.batches(0)
        assert len(next(batches)[0]) == 8
        with pytest.raises(UserError, match="row 12"):
            next(batches)


class Photographs(Dataset[Any]):
    """Images whose channels lie last in memory, as files give them, and their numbers."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> Any:
        pixels = torch.arange(5 * 6 * 3, dtype=torch.uint8).view(5, 6, 3) + row
        return pixels.permute(2, 0, 1), row


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("channels_last", [True, False])
def test_images_arrive_in_the_layout_that_is_asked_for(workers: int, channels_last: bool) -> None:
    data = Photographs()
    inputs, numbers = next(
        loader(data, False, workers=workers, batch_size=8, channels_last=channels_last).batches(0)
    )
    assert inputs.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert inputs.is_contiguous() != channels_last
    assert numbers.tolist() == list(range(8))
    expected = torch.stack([data[row][0] for row in range(8)])
    assert torch.equal(inputs, expected.float().div_(255))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gets_the_same_batches_by_its_copy_stream(workers: int) -> None:
    config = settings(batch_size=2, workers=workers)
    here = Loader(Photographs(), config, CPU, 0, True)
    there = Loader(Photographs(), config, torch.device("cuda"), 0, True)
    found = []
    for epoch in range(20):
        for inputs, numbers in there.batches(epoch):
            busy = torch.randn(1500, 1500, device="cuda")
            for _ in range(5):  # the next copies run beside it, and must not touch this batch
                busy = busy @ busy
            found.append((inputs + 0 * busy[0, 0].nan_to_num(0, 0, 0), numbers))
    expected = [batch for epoch in range(20) for batch in here.batches(epoch)]
    for (inputs, numbers), (wanted, ids) in zip(found, expected, strict=True):
        assert torch.equal(inputs.cpu(), wanted)
        assert torch.equal(numbers.cpu(), ids)


@pytest.mark.parametrize(
    "knobs",
    [{"data": "streamed"}, {"data": "streamed", "workers": 1}, {"data": "streamed", "workers": 2}],
    ids=str,
)
def test_a_member_does_not_depend_on_where_its_data_live(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    of, base = member(pictures(), tmp_path / "a"), settings(dropout=0.3, mixup=0.2)
    expected = fitted(classifier(), of, base)
    streamed = settings(dropout=0.3, mixup=0.2, **knobs)
    other = member(pictures(), tmp_path / "b")
    assert fitted(classifier(), other, streamed) == expected
    np.testing.assert_array_equal(
        answers(classifier(), of, base), answers(classifier(), other, streamed)
    )


def test_pixels_arrive_as_floats_in_0_to_1_and_numbers_in_the_model_s_precision() -> None:
    pixels = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    dataset = TensorDataset(pixels, torch.ones(4, dtype=torch.float64), torch.arange(4))
    for data in ("resident", "streamed"):
        inputs, number, position = next(loader(dataset, data=data).batches(0))
        assert inputs.dtype == number.dtype == torch.float32
        assert position.dtype == torch.int64
        assert bool((inputs == 1).all())
        assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_rows_in_files_cannot_be_resident() -> None:
    with pytest.raises(UserError, match="data=resident"):
        loader(Noisy(), data="resident").batches  # noqa: B018


def test_rows_that_do_not_fit_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.is_resident(NUMBERED, settings(), CPU)
    monkeypatch.setattr(loading.devices, "free_bytes", lambda device: 100)
    meta = torch.device("meta")
    assert not loading.is_resident(NUMBERED, settings(), meta)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 pictures as PNG files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row, pixels in enumerate(pictures(40, 16).train_inputs):  # type: ignore[arg-type]
        Image.fromarray(pixels[0]).save(folder / f"{row}.png")
    return folder


def from_files(folder: Path) -> Any:
    def dataset(split: Split, config: Any) -> ImageFiles:
        transform = augment.training_view(12) if split.stage == "train" else None
        paths = [folder / f"{row}.png" for row in split.rows]
        return ImageFiles(paths, split.target, channels=1, size=(12, 12), transform=transform)

    return classifier(dataset=dataset)


def files_member(folder: Path) -> Member:
    return member(pictures(40, 16), folder)


def test_image_files_train_through_albumentations_and_workers(folder: Path, tmp_path: Path) -> None:
    expected = fitted(from_files(folder), files_member(tmp_path / "a"), settings(epochs=2))
    config = settings(epochs=2, workers=2, score_every=1)
    of = files_member(tmp_path / "b")
    assert fitted(from_files(folder), of, config) == expected
    predictor = from_files(folder).restore(of.folder, config, {})
    assert predictor(of.valid).shape == (10, 3)


def test_image_files_reach_workers_that_start_afresh(folder: Path) -> None:
    dataset = from_files(folder).dataset(files_member(folder.parent / "m").train, settings())
    expected = [batch[0] for batch in loader(dataset).batches(0)]
    method = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        found = [batch[0] for batch in loader(dataset, workers=1).batches(0)]
    finally:
        torch.multiprocessing.set_start_method(method, force=True)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_wherever_it_is_read(
    workers: int, folder: Path, tmp_path: Path
) -> None:
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"7\.png") as caught:
        fitted(from_files(folder), files_member(tmp_path / "m"), settings(workers=workers))
    assert "Traceback" not in str(caught.value)
