"""Clips are read as they are, or refused in one sentence; never a hang, never a flood of memory."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from kagglekit import video
from kagglekit.errors import UserError
from kagglekit.video import Limits
from tests.miniatures import clip


def levels(count: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames of one grey each, ten levels brighter from one to the next."""
    greys = 10 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(greys, (count, height, width, 3)).copy()


def sound(path: Path, kind: str = "pcm_s16le") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind, rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        tone.rate, tone.pts = 8000, 0
        container.mux(stream.encode(tone))
        container.mux(stream.encode())
    return path


def refused(path: Path, limits: Limits = video.USUAL) -> str:
    with pytest.raises(UserError) as caught:
        video.read(path, limits)
    told = str(caught.value)
    assert path.name in told
    assert "\n" not in told
    return told


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("a.mkv", "ffv1"), ("a.mp4", "libx264"), ("a.webm", "libvpx")],
)
def test_each_container_gives_its_frames_and_their_moments(
    tmp_path: Path, name: str, codec: str
) -> None:
    read = video.read(clip(tmp_path / name, levels(), codec=codec))
    assert read.frames.shape == (12, 32, 48, 3)
    assert np.abs(read.frames.astype(int) - levels()).max() <= 6
    np.testing.assert_allclose(read.times, np.arange(12) / 10, atol=1e-3)
    assert read.duration == pytest.approx(1.2, abs=1e-3)


def test_odd_sizes_stay_and_large_ones_shrink_to_the_height(tmp_path: Path) -> None:
    odd = clip(tmp_path / "odd.mkv", levels(2, 33, 47))
    assert video.read(odd).frames.shape == (2, 33, 47, 3)
    assert video.read(odd, Limits(height=11)).frames.shape == (2, 11, 16, 3)
    thin = clip(tmp_path / "thin.mkv", levels(2, 2, 4000))
    assert video.read(thin).frames.nbytes < 1e5


def test_where_the_rate_varies_a_moment_shows_what_was_on_the_screen(tmp_path: Path) -> None:
    moments = [0, 1, 2, 20, 21, 22]
    read = video.read(clip(tmp_path / "a.mkv", levels(6), moments))
    np.testing.assert_allclose(read.times, np.array(moments) / 10, atol=1e-3)
    seen = read.at(video.spread(read.duration, 4))[:, 0, 0, 0]
    assert seen.tolist() == [20, 20, 20, 30]  # three quarters of the time the third frame stood


def test_a_longer_clip_is_kept_evenly_in_as_many_frames_as_are_allowed(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", levels(25), rate=25)
    read = video.read(path, Limits(frames=8))
    assert read.frames[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200, 240]
    np.testing.assert_allclose(np.diff(read.times), 4 / 25, atol=2e-3)


def test_a_header_that_lies_about_the_number_of_frames_is_not_believed(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.avi", levels(), codec="mpeg4")
    content = bytearray(path.read_bytes())
    for header, field in ((b"avih", 16), (b"strh", 32)):  # how many frames there are to be
        place = content.index(header) + 8 + field
        assert content[place : place + 4] == (12).to_bytes(4, "little")
        content[place : place + 4] = (10**9).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(video.read(path).frames) == 12


def test_a_clip_that_breaks_off_gives_the_frames_before(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", levels())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    read = video.read(path)
    assert 2 < len(read.frames) < 12
    assert (read.frames == levels()[: len(read.frames)]).all()


def test_what_is_no_clip_is_named_in_one_sentence(tmp_path: Path) -> None:
    assert "no video stream" in refused(sound(tmp_path / "sound.mkv"))
    assert "no video stream" in refused(sound(tmp_path / "sound.avi"))
    refused(clip(tmp_path / "zero.avi", levels(0), codec="mpeg4"))
    mp4 = clip(tmp_path / "cut.mp4", levels(), codec="libx264")
    mp4.write_bytes(mp4.read_bytes()[:-200])  # the index is at the end
    refused(mp4)
    (tmp_path / "empty.mp4").touch()
    assert "is empty" in refused(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("these are not the frames that you are looking for")
    assert "no AVI" in refused(tmp_path / "text.mp4")
    assert "does not exist" in refused(tmp_path / "none.mp4")


def test_a_playlist_leads_nowhere(tmp_path: Path) -> None:
    clip(tmp_path / "secret.mp4", levels(), codec="libx264")
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n")
    assert "no AVI" in refused(playlist)


def test_a_frame_too_large_and_a_clip_too_slow_are_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", levels(4, 200, 300))
    assert "pixels" in refused(path, Limits(pixels=50_000))
    assert "longer than 0 s" in refused(path, Limits(seconds=0))


def test_a_clip_is_decoded_once_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = clip(tmp_path / "a.mkv", levels())
    frames = video.cached(first).frames
    other = first.rename(tmp_path / "b.mkv")
    changed = clip(tmp_path / "a.mkv", levels(5))

    def decode(path: Path, limits: Limits) -> video.Clip:
        raise AssertionError(f"{path} is decoded again")

    read = video.read
    monkeypatch.setattr(video, "read", decode)
    assert (video.cached(other).frames == frames).all()
    monkeypatch.setattr(video, "read", read)
    assert len(video.cached(changed).frames) == 5
    assert video.cached(other, Limits(height=16)).frames.shape[1] == 16


def test_moments_are_spread_evenly_and_jitter_stays_in_its_part() -> None:
    assert video.spread(2.0, 4).tolist() == [0.25, 0.75, 1.25, 1.75]
    drawn = video.spread(2.0, 4, np.random.default_rng(0).random(4))
    assert (np.floor(drawn / 0.5) == np.arange(4)).all()


def test_results_come_in_order_from_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        assert list(video.in_parallel(lambda item: item**2, range(30))) == [
            item**2 for item in range(30)
        ]
