"""Whatever an image file looks like inside, a model sees one kind of array."""

from __future__ import annotations

import errno
import io
import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from kagglekit import augment, files, folders, images, keeping
from kagglekit.config import NetworkConfig
from kagglekit.errors import UserError
from kagglekit.loading import Loader

RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def grey(path: Path, value: int = 7, size: tuple[int, int] = (3, 2)) -> Path:
    return saved(path, Image.new("L", size, value))


def noise(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    return saved(path, Image.fromarray(pixels))


def mirrored(image: np.ndarray, seed: int) -> np.ndarray:
    return image[:, ::-1]


# --- reading ------------------------------------------------------------------------------------


def test_pixels_come_as_they_were_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(images.read(path), pixels)
    plane = saved(tmp_path / "b.png", Image.fromarray(pixels[..., 0]))
    np.testing.assert_array_equal(images.read(plane, 1), pixels[..., :1])
    np.testing.assert_array_equal(images.read(plane, 3), np.repeat(pixels[..., :1], 3, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_size_is_height_and_width(tmp_path: Path, channels: images.Channels) -> None:
    path = grey(tmp_path / "a.png", 9, (30, 20))
    assert images.read(path, channels).shape == (20, 30, channels)
    small = images.read(path, channels, (5, 10))
    assert small.shape == (5, 10, channels)
    assert small.dtype == np.uint8
    assert (small == 9).all()


def test_a_picture_that_was_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    path = saved(tmp_path / "a.png", picture, exif=exif)
    assert images.read(path).tolist() == [[RED], [[0, 0, 0]]]


def test_damaged_metadata_leave_the_image_readable(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.jpg", Image.new("L", (8, 8), 128), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    assert images.read(path, 1).shape == (8, 8, 1)


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    assert images.read(saved(tmp_path / "a.png", picture)).tolist() == [[RED, BLUE]]
    assert images.read(tmp_path / "a.png", 1).tolist() == [[[76], [29]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    layer = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    if mode in ("P", "PA"):
        picture = Image.new("P", (2, 1))
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.putpixel((1, 0), 1)
        path = saved(tmp_path / "a.png", picture, transparency=1)
    else:
        path = saved(tmp_path / "a.png", layer.convert(mode))
    assert images.read(path).tolist() == [[[0, 0, 0], WHITE]]
    assert images.read(path, 1).tolist() == [[[0], [255]]]


@pytest.mark.parametrize(("suffix", "order"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path, suffix: str, order: str) -> None:
    samples = np.array([[0, 257, 32896, 65535]], order)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(samples))
    assert images.read(path, 1)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floats_are_scaled_from_one(tmp_path: Path) -> None:
    samples = np.array([[0, 0.5, 1, 2]], np.float32)
    path = saved(tmp_path / "a.tif", Image.fromarray(samples))
    assert images.read(path, 1)[0, :, 0].tolist() == [0, 128, 255, 255]


def test_print_colours_become_screen_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.new("CMYK", (1, 1), (0, 255, 255, 0)))
    assert images.read(path).tolist() == [[RED]]
    assert images.read(path, 1).tolist() == [[[76]]]


@pytest.mark.parametrize("mode", ["1", "YCbCr"])
def test_other_modes_are_read(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.tif", Image.new("L", (1, 1), 255).convert("RGB").convert(mode))
    assert images.read(path).tolist() == [[WHITE]]


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), tuple(colour)) for colour in (RED, GREEN)]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert images.read(path)[0, 0].tolist() == RED


def test_a_file_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    noise(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert images.read(tmp_path / "a.jpg").shape == (40, 50, 3)


# --- broken files -------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        images.read(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


def test_no_image_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    refused(tmp_path / "empty.png", "is empty")
    (tmp_path / "text.png").write_text("404: not found")
    refused(tmp_path / "text.png", "no whole image")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png")
    refused(tmp_path / "missing.png", "does not exist")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    whole = noise(tmp_path / f"whole.{suffix}").read_bytes()
    for size in (1, 10, 60, len(whole) // 2):
        path = tmp_path / f"{size}.{suffix}"
        path.write_bytes(whole[:size])
        refused(path, "no whole image")


def test_flipped_bytes_are_an_image_or_an_error_never_a_crash(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    failed = 0
    for suffix in ("png", "jpg", "gif", "tif"):
        whole = noise(tmp_path / f"whole.{suffix}").read_bytes()
        for number in range(30):
            flipped = bytearray(whole)
            for position in random.integers(0, min(len(whole), 400), 5):
                flipped[position] ^= int(random.integers(1, 256))
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(flipped)
            try:
                images.read(path)
            except UserError:
                failed += 1
    assert failed > 30


@pytest.mark.parametrize("limit", [50, 90])
def test_a_bomb_is_not_unpacked(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grey(tmp_path / "bomb.png", 0, (10, 12))  # beyond the limit, and twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    refused(path, "too large")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120)
    assert images.read(path).shape == (12, 10, 3)


def test_ten_thousand_pixels_a_side_are_named_and_cost_no_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "large.png", Image.new("1", (10_000, 10_000)), compress_level=1)
    tracemalloc.start()
    refused(path, "too large to be an honest image")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


# --- folders of classes -------------------------------------------------------------------------


def test_folders_are_classes_in_natural_order(tmp_path: Path) -> None:
    for name in ("10/2.png", "10/10.png", "2/b.JPG", "2/deep/a.png", "cat/1.bmp"):
        buffer = io.BytesIO()
        Image.new("L", (1, 1)).save(buffer, "png")
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(buffer.getvalue())
    (tmp_path / "train" / "2" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "2" / "notes.txt").write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "labels.csv").write_bytes(b"")
    paths, positions, classes = images.folder_classes(tmp_path / "train")
    assert classes == ("2", "10", "cat")
    assert positions.tolist() == [0, 0, 1, 1, 2]
    assert positions.dtype == np.int64
    names = [path.relative_to(tmp_path / "train").as_posix() for path in paths]
    assert names == ["2/b.JPG", "2/deep/a.png", "10/2.png", "10/10.png", "cat/1.bmp"]


def test_a_folder_that_holds_no_classes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train does not exist"):
        images.folder_classes(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="train has no folders"):
        images.folder_classes(tmp_path / "train")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(UserError, match="cat has no images"):
        images.folder_classes(tmp_path / "train")


# --- the data set -------------------------------------------------------------------------------


def test_an_item_is_a_tensor_with_its_target(tmp_path: Path) -> None:
    paths = [noise(tmp_path / "a.png"), grey(tmp_path / "b.png")]
    data = images.ImageFiles(paths, np.array([4, 5]), 3, (20, 30))
    item = data[0]
    assert len(item) == 2
    inputs, target = item
    assert inputs.shape == (3, 20, 30)
    assert inputs.dtype == torch.uint8
    assert target.item() == 4
    assert target.dtype == torch.int64
    assert len(data) == 2
    np.testing.assert_array_equal(
        inputs.numpy(), images.read(paths[0], 3, (20, 30)).transpose(2, 0, 1)
    )
    assert len(images.ImageFiles(paths, None, 1)[1]) == 1
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        images.ImageFiles(paths, np.array([4]))


def test_a_transform_sees_height_width_channels(tmp_path: Path) -> None:
    paths = [noise(tmp_path / "a.png")]
    plain, turned = (images.ImageFiles(paths, None, 3, None, f)[0][0] for f in (None, mirrored))
    assert torch.equal(turned, plain.flip(2))


def test_it_can_be_sent_to_a_worker_process(tmp_path: Path) -> None:
    paths = [grey(tmp_path / f"{value}.png", value) for value in range(4)]
    data = images.ImageFiles(paths, np.arange(4.0), 1, (2, 2), mirrored)
    sent = pickle.loads(pickle.dumps(data))
    inputs, targets = next(iter(DataLoader(sent, batch_size=4)))
    assert inputs[:, 0, 0, 0].tolist() == targets.tolist() == [0, 1, 2, 3]


def test_a_broken_file_is_named_through_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"bad\.png is empty"):
        images.ImageFiles([tmp_path / "bad.png"], None)[0]


def test_a_script_with_the_name_of_a_picture_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UserError, match="no whole image"):
        images.read(tmp_path / "a.png")


# --- decoded once -------------------------------------------------------------------------------


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as older than they are, so that what they hold is kept at once."""
    monkeypatch.setattr(files, "_RACE_SECONDS", -1)


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a few megabytes that goes with the test."""
    monkeypatch.setattr(keeping, "_memory", [keeping.Memory(1 << 22)])


def mixed(folder: Path) -> list[Path]:
    """Three images of different sizes and colours."""
    sizes = grey(folder / "b.png", 9), grey(folder / "1x1.png", 3, (1, 1))
    return [noise(folder / "a.png"), *sizes]


@pytest.mark.usefixtures("settled", "own_memory")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("keep", ["memory", "disk", "auto"])
def test_files_are_decoded_once_whatever_their_sizes(tmp_path, monkeypatch, keep, channels):
    paths = mixed(tmp_path)
    plain = images.ImageFiles(paths, None, channels, keep="none")
    anew = [plain[row][0] for row in range(3)]
    once = images.ImageFiles(paths, np.arange(3), channels, keep=keep)
    assert all(torch.equal(once[row][0], anew[row]) for row in range(3))
    with monkeypatch.context() as patch:
        patch.setattr(images, "read", None)  # would fail if it were asked
        again = images.ImageFiles(paths[::-1], None, channels, keep=keep)
        again[0][0].zero_()  # what is handed out is the caller's
        assert all(torch.equal(again[2 - row][0], anew[row]) for row in range(3))
    sent = pickle.loads(pickle.dumps(once))
    assert all(torch.equal(sent[row][0], anew[row]) for row in range(3))
    grey(paths[1], 10)
    assert once[1][0].unique().tolist() == [10]


@pytest.mark.parametrize("keep", ["none", "memory", "disk", "auto"])
def test_a_broken_file_is_named_wherever_images_are_kept(tmp_path: Path, keep: Any) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    paths = [grey(tmp_path / "a.png"), tmp_path / "text.jpg", tmp_path / "nowhere.jpg"]
    data = images.ImageFiles(paths, None, keep=keep)
    assert data[0][0].shape == (3, 2, 3)
    for row in (1, 2):
        with pytest.raises(UserError, match=paths[row].name):
            data[row]


@pytest.mark.usefixtures("settled", "own_memory")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_have_the_same_bytes_wherever_images_are_kept(
    tmp_path: Path, workers: int, channels: images.Channels
) -> None:
    paths = [noise(tmp_path / f"{row}.png", row) for row in range(12)]
    view = augment.training_view(16)
    config = NetworkConfig(batch_size=4, workers=workers)

    def epochs(keep: Any) -> Any:
        data = images.ImageFiles(paths, np.arange(12), channels, (16, 16), view, keep, 24)
        loader = Loader(data, config, torch.device("cpu"), 5, training=True)
        return [part for epoch in (0, 1, 2) for batch in loader.batches(epoch) for part in batch]

    expected = epochs("none")
    assert expected[0].shape == (4, channels, 16, 16)
    for keep in ("memory", "disk", "auto"):
        found = epochs(keep)
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.usefixtures("settled", "own_memory")
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_what_workers_decode_is_kept_for_all(
    tmp_path: Path, keep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [grey(tmp_path / f"{value}.png", value) for value in range(20)]
    first = images.ImageFiles(paths, None, 1, keep=keep)
    list(DataLoader(first, batch_size=2, num_workers=2))
    monkeypatch.setattr(images, "read", None)  # would fail if it were asked
    other = images.ImageFiles(paths[5:], None, 1, keep=keep)  # another fold
    assert [int(other[row][0][0, 0, 0]) for row in range(15)] == list(range(5, 20))


@pytest.mark.usefixtures("settled")
def test_a_damaged_file_of_the_cache_is_decoded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [noise(tmp_path / "a.png")]
    expected = images.Decoded(paths, keep="disk")[0]
    (kept,) = (path for path in (folders.cache() / "decoded").rglob("*") if path.is_file())
    whole = kept.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    larger = whole[:8] + b"\xff" * 12 + whole[20:]
    for content in (flipped, whole[:-1], whole + b"0", whole[:7], b"", larger, bytes(len(whole))):
        caplog.clear()
        kept.write_bytes(content)
        np.testing.assert_array_equal(images.Decoded(paths, keep="disk")[0], expected)
        assert "is damaged" in caplog.text
        assert kept.read_bytes() == whole


def free_space(monkeypatch: pytest.MonkeyPatch, disk: int, memory: int) -> None:
    """Let there be so many bytes on the disk and in memory."""
    usage = SimpleNamespace(free=disk)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(keeping, "_memory", [keeping.Memory(max(memory, 1))])
    monkeypatch.setattr(images, "_said", set())


@pytest.mark.usefixtures("settled")
def test_images_are_kept_where_there_is_room_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [noise(tmp_path / f"{row}.png", row) for row in range(5)]
    size = 5 * 40 * 50 * 3

    def told(disk: int, memory: int, **options: Any) -> str:
        free_space(monkeypatch, disk, memory)
        caplog.clear()
        data = images.ImageFiles(paths, None, **options)
        assert [data[row][0].shape for row in range(5)] == [data[0][0].shape] * 5
        return caplog.text

    assert "each is decoded each time" in told(2 * size - 1, size - 1)
    assert "kept in memory" in told(2 * size - 1, size)
    assert "kept in memory" in told(size // 2 - 2, size // 4, shorter=20)  # a quarter of the pixels
    assert f"kept in {folders.cache()}" in told(2 * size, 0)
    # what lies there already needs no room: a later run does not decide otherwise
    assert f"kept in {folders.cache()}" in told(0, 0)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_what_has_no_room_where_it_was_told_to_be_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Any
) -> None:
    free_space(monkeypatch, 1000, 1000)
    with pytest.raises(UserError, match=f"keep={keep} needs .* give `shorter`"):
        images.ImageFiles([noise(tmp_path / "a.png")], None, keep=keep)


@pytest.mark.usefixtures("settled")
def test_a_disk_that_fills_up_stops_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [grey(tmp_path / f"{value}.png", value) for value in range(4)]
    auto, strict = (images.Decoded(paths, 1, keep) for keep in ("auto", "disk"))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    assert [int(auto[row][0, 0, 0]) for row in range(4)] == list(range(4))
    assert caplog.text.count("is full") == 1
    with pytest.raises(UserError, match="is full"):
        strict[0]
    assert [path for path in (folders.cache() / "decoded").rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_leaves_images_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAGGLEKIT_CACHE", str(tmp_path / "file"))
    data = images.Decoded([grey(tmp_path / "a.png", 5)], 1)
    assert data[0][0, 0, 0] == 5


def test_large_photographs_are_shrunk_to_their_shorter_side(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1200, dtype=np.uint8)[None, :, None].repeat(800, 0).repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    for options, shape in (({}, (100, 150, 3)), ({"exif": exif}, (150, 100, 3))):
        path = saved(tmp_path / "a.jpg", Image.fromarray(ramp), quality=95, **options)
        small = images.read(path, shorter=100)
        assert small.shape == shape
        plain = Image.fromarray(images.read(path)).resize(shape[1::-1], Image.Resampling.BILINEAR)
        assert np.abs(small.astype(int) - np.asarray(plain, int)).max() <= 4  # of 255
    assert images.read(path, shorter=2000).shape == (1200, 800, 3)
    data = images.ImageFiles([path], None, 3, (24, 32), mirrored, "none", shorter=100)
    assert data[0][0].shape == (3, 24, 32)


def test_what_an_array_holds_is_changed_and_resized(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    data = images.Images(pixels, np.arange(2), mirrored, (4, 3))
    assert data[1][0].shape == (3, 4, 3)
    whole = images.Images(pixels, None, mirrored)[1][0]
    assert torch.equal(whole, torch.from_numpy(pixels[1, :, ::-1].copy()).permute(2, 0, 1))
