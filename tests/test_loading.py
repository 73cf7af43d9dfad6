from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from kagglekit import augment, loading
from kagglekit.data import Data, Split
from kagglekit.errors import UserError
from kagglekit.images import ImageFiles
from kagglekit.loading import InStep, Loader
from kagglekit.recipe import Member
from tests.engine import (
    CPU,
    answers,
    classifier,
    fitted,
    member,
    numbers,
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
        for inputs, ids in there.batches(epoch):
            busy = torch.randn(1500, 1500, device="cuda")
            for _ in range(5):  # the next copies run beside it, and must not touch this batch
                busy = busy @ busy
            found.append((inputs + 0 * busy[0, 0].nan_to_num(0, 0, 0), ids))
    expected = [batch for epoch in range(20) for batch in here.batches(epoch)]
    for (inputs, ids), (wanted, known) in zip(found, expected, strict=True):
        assert torch.equal(inputs.cpu(), wanted)
        assert torch.equal(ids.cpu(), known)


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


# --- one copy for all members -------------------------------------------------------------------

META = torch.device("meta")  # a device that has no memory


def splits(data: Data, members: int = 3) -> list[Split]:
    """The training rows of some members, each without a fold of its own."""
    rows = np.arange(len(data.train))
    return [data.split(rows[rows % members != place], "train") for place in range(members)]


def loaders(of: list[Split], own: bool = False, **knobs: Any) -> list[Loader]:
    """A loader for each member; of columns of its `own`, or of those that all share."""
    datasets = [split.tensors(split.inputs) if own else split.tensors() for split in of]
    return [loader(rows, seed=place, **knobs) for place, rows in enumerate(datasets)]


@pytest.mark.parametrize("data", [numbers(), pictures()], ids=["table", "pictures"])
def test_the_inputs_of_all_members_are_in_memory_once(data: Data) -> None:
    rows = [one.resident for one in loaders(splits(data, 20))]
    assert len({each.columns[0].data_ptr() for each in rows if each}) == 1
    of_one = rows[0]
    assert of_one is not None
    assert of_one.unshared == data.target.nbytes  # what is hidden of it is another for each
    split = splits(data, 20)[0]
    assert split.target is not None
    assert of_one.nbytes == split.inputs.nbytes + split.target.nbytes


def on_meta(of: list[Split]) -> list[Loader]:
    return [Loader(split.tensors(), settings(data="resident"), META, 0, True) for split in of]


def test_inputs_are_moved_to_a_device_once_and_gone_when_no_loader_reads_them() -> None:
    gc.collect()
    before = len(loading._on_devices)
    of = splits(pictures())
    made = on_meta(of)
    moved = {id(one.resident.columns[0]) for one in made if one.resident}
    assert len(moved) == 1
    assert len(loading._on_devices) == before + 4  # and the targets of each
    again = on_meta(of[:1])[0].resident
    assert again is not None
    assert {id(again.columns[0])} == moved
    del made, again
    assert len(loading._on_devices) == before


def test_lanes_that_plan_at_once_move_inputs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[torch.Size] = []

    class Slow(loading._Moved):
        def __init__(self, column: torch.Tensor, device: torch.device) -> None:
            moves.append(column.shape)
            time.sleep(0.02)
            super().__init__(column, device)

    monkeypatch.setattr(loading, "_Moved", Slow)
    column, together = torch.zeros(96, 3), threading.Barrier(4)
    found: list[Any] = []

    def plan() -> None:
        together.wait()
        found.append(loading._moved(column, META))

    lanes = [threading.Thread(target=plan) for _ in range(4)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert len(found) == 4
    assert all(one is found[0] for one in found)
    assert moves == [column.shape]


def test_a_member_has_rows_of_its_own_where_not_all_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    few = pictures().split(np.arange(6), "train").tensors()
    for free, resident in ((1 << 20, 96), (2000, 6), (100, 0)):
        monkeypatch.setattr(loading.devices, "free_bytes", lambda device, free=free: free)
        found = Loader(few, settings(), META, 0, True).resident
        assert (len(found.columns[0]) if found else 0) == resident
        del found  # what is on the device takes nothing more


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_holds_one_copy_for_all_members_and_gives_each_its_own_batches() -> None:
    of, config = splits(pictures(960), 20), settings()
    gc.collect()
    free = torch.cuda.memory_allocated()
    there = [Loader(split.tensors(), config, torch.device("cuda"), place, True)
             for place, split in enumerate(of)]  # fmt: skip
    joint = InStep(there)
    assert torch.cuda.memory_allocated() - free < 1.5 * (960 * 64 + 40 * 960 * 8)
    here = InStep([replace(one, device=CPU) for one in there])
    for batches in zip(joint.batches(1), here.batches(1), strict=True):
        for found, expected in zip(*batches, strict=True):
            assert torch.equal(found.cpu(), expected)
    del joint, there
    assert torch.cuda.memory_allocated() - free < 1 << 20


KINDS = {
    "table": (numbers(), {}),
    "pictures": (pictures(), {}),
    "balanced": (pictures(), {"sampling": "balanced"}),
    "contiguous": (pictures(), {"channels_last": False}),
    "streamed": (pictures(), {"data": "streamed"}),
    "by workers": (pictures(), {"data": "streamed", "workers": 1}),
}


@pytest.mark.parametrize(("data", "knobs"), KINDS.values(), ids=KINDS)
def test_shared_rows_come_as_rows_of_one_s_own_do(data: Data, knobs: dict[str, Any]) -> None:
    of = splits(data)
    for one, other in zip(loaders(of, True, **knobs), loaders(of, **knobs), strict=True):
        for batches in zip(one.batches(1), other.batches(1), strict=True):
            for part, expected in zip(*batches, strict=True):
                assert torch.equal(part, expected)
                assert part.dtype == expected.dtype
                assert part.stride() == expected.stride()


def test_what_trains_on_shared_rows_learns_what_it_learns_on_its_own(tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"patience": 2, "holdout": 0.2, "sampling": "balanced"}
    learned = [
        fitted(classifier(**parts), member(pictures(), tmp_path / name), settings(**knobs))
        for name, parts in (("shared", {}), ("own", {"dataset": own_rows}))
    ]
    assert learned[0] == learned[1]


def own_rows(split: Split, config: Any) -> TensorDataset:
    return split.tensors(split.inputs)


def colours(rows: int = 96) -> Data:
    data = pictures(rows)
    object.__setattr__(data, "train_inputs", np.repeat(data.train_inputs, 3, axis=1))
    return data


IN_STEP = {**KINDS, "colours": (colours(), {}),
           "flat colours": (colours(), {"channels_last": False})}  # fmt: skip


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(("data", "knobs"), IN_STEP.values(), ids=IN_STEP)
def test_loaders_in_step_give_each_member_its_own_batch(
    data: Data, knobs: dict[str, Any], own: bool
) -> None:
    each = loaders(splits(data), own, **knobs)
    joint = InStep(loaders(splits(data), own, **knobs))
    assert bool(joint.columns) == (not own) or "data" in knobs
    for first in (0, 2):
        apart = zip(*(one.batches(1, first) for one in each), strict=True)
        for batches, all_rows in zip(apart, joint.batches(1, first), strict=True):
            for parts, together in zip(zip(*batches, strict=True), all_rows, strict=True):
                stacked = torch.stack(list(parts))
                assert torch.equal(together.unflatten(0, (3, -1)), stacked)
                assert together.unflatten(0, (3, -1)).stride() == stacked.stride()


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(
    "data", [numbers(), pictures(), colours()], ids=["table", "grey", "colour"]
)
def test_a_whole_epoch_in_step_holds_its_batches_in_turn(data: Data, own: bool) -> None:
    joint = InStep(loaders(splits(data), own))
    whole = joint.whole(2)
    batches = list(joint.batches(2))
    for part, of_batches in zip(whole, zip(*batches, strict=True), strict=True):
        assert part.shape[:3] == (4, 3, 16)
        assert torch.equal(part.flatten(1, 2), torch.stack(of_batches))
    size = joint.nbytes
    assert size is not None
    assert size == 3 * sum(column[:1].nbytes for column in joint.resident[0].columns) * 64


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
