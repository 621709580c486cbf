"""Video files as clips: which frames, where they are looked at, sound beside them, damage."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from perceivers.data import video_clips
from perceivers.data.augment import AugmentConfig, Look, Place
from perceivers.data.sources import Encoded
from perceivers.data.video_clips import FrameTimes, fit_clip, fit_video, native_video
from perceivers.errors import DataError
from perceivers.types import Audio, Video

EncodeSound = Callable[..., bytes]
EncodeVideo = Callable[..., bytes]
Numbered = Callable[..., np.ndarray]
NumbersOf = Callable[[np.ndarray], list[int]]
CONTAINERS = [
    ("mp4", "libx264"),
    ("matroska", "libx264"),
    ("mov", "mpeg4"),
    ("avi", "mpeg4"),
    ("avi", "libx264"),
]


def clip(data: bytes, name: str = "a.mp4") -> Encoded:
    return Encoded(name, data, "video")


def noise(samples: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(samples + 7)
    return 0.3 * np.convolve(values, np.ones(8) / 8, "valid")[None].astype(np.float32)


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS)
def test_consecutive_frames_come_from_the_centre(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf, kind: str, codec: str
) -> None:
    # Key frames every 10 frames, so that the file is entered in its middle.
    data = encode_video(numbered(60), kind=kind, codec=codec, g="10")
    found = fit_video(clip(data), Video(16, 32, 64))
    assert (found.dtype, found.shape) == (np.uint8, (3, 16, 32, 64))
    assert numbers_of(found) == list(range(22, 38))
    assert native_video(clip(data)) == Video(60, 32, 64, 3, frame_rate=25.0)


@pytest.mark.slow
def test_every_random_start_is_met_and_follows_the_generator(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf
) -> None:
    encoded, spec = clip(encode_video(numbered(20), g="5")), Video(16, 16, 32)

    def starts(seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        found = [numbers_of(fit_video(encoded, spec, Look(rng))) for _ in range(24)]
        assert all(n == list(range(n[0], n[0] + 16)) for n in found)
        return [numbers[0] for numbers in found]

    assert set(starts(0)) == set(range(5))
    assert starts(0) == starts(0) != starts(1)
    # One draw per clip, whatever its length.
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    fit_video(encoded, spec, Look(rng))
    fit_video(encoded, Video(40, 8, 8), Look(other))
    assert rng.random() == other.random()


def test_frames_are_sampled_at_the_declared_rate(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf
) -> None:
    encoded = clip(encode_video(numbered(50), 25))
    slow = fit_video(encoded, Video(10, 32, 64, frame_rate=5.0))
    assert numbers_of(slow) == list(range(0, 50, 5))
    half = fit_video(encoded, Video(4, 32, 64, frame_rate=12.5))
    assert numbers_of(half) == [21, 23, 25, 27]
    fast = fit_video(encoded, Video(4, 32, 64, frame_rate=50.0))
    assert numbers_of(fast) == [24, 24, 25, 25]


def test_short_files_repeat_their_last_frame(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf
) -> None:
    encoded = clip(encode_video(numbered(5)))
    for rng in (None, np.random.default_rng(0)):
        assert numbers_of(fit_video(encoded, Video(8, 32, 64), Look(rng))) == [
            0,
            1,
            2,
            3,
            4,
            4,
            4,
            4,
        ]
    sparse = fit_video(encoded, Video(4, 32, 64, frame_rate=12.5))
    assert numbers_of(sparse) == [0, 2, 4, 4]


def test_the_largest_undistorted_centre_is_kept_and_gray_is_one_channel(
    encode_video: EncodeVideo,
) -> None:
    frames = np.zeros((2, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 200
    encoded = clip(encode_video(frames, qp="0"))
    assert np.abs(fit_video(encoded, Video(2, 16, 12)).astype(int)[..., 1:-1] - 200).max() <= 8
    gray = fit_video(encoded, Video(2, 16, 12, channels=1))
    assert gray.shape == (1, 2, 16, 12)
    shifted = clip(encode_video(np.roll(frames, 24, axis=2), qp="0"))
    assert np.abs(fit_video(shifted, Video(2, 16, 12)).astype(int) - 200).max() > 100
    with pytest.raises(DataError, match=r"a\.mp4: video files give 1 \(gray\) or 3 .*, not 2"):
        fit_video(encoded, Video(2, 16, 12, channels=2))


def test_all_frames_of_a_clip_are_cropped_and_mirrored_alike(encode_video: EncodeVideo) -> None:
    ramp = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], 3, axis=2)
    frames = np.broadcast_to(ramp, (6, 32, 48, 3))
    encoded = clip(encode_video(np.ascontiguousarray(frames), qp="0"))
    augment = AugmentConfig(crop_scale=(0.2, 1.0), flip=True)
    looks = [Look(np.random.default_rng(seed), augment) for seed in (*range(8), 7)]
    *clips, again = [fit_video(encoded, Video(3, 8, 8), look) for look in looks]
    seen = []
    for found in clips:
        assert np.abs(found.astype(int) - found[:, :1]).max() <= 2
        seen.append(found[0, 0, 4].astype(int))
    rising = {bool(row[-1] > row[0]) for row in seen}
    assert rising == {True, False}
    widths = [abs(int(row[-1] - row[0])) for row in seen]
    assert max(widths) > 1.3 * min(widths)
    assert np.array_equal(again, clips[7])
    assert not np.array_equal(again, clips[6])


def test_where_a_clip_begins_does_not_depend_on_its_augmentation(
    encode_video: EncodeVideo, numbered: Numbered
) -> None:
    wave = noise(38400)
    encoded = clip(encode_video(numbered(60), 25, wave, 16000))
    augment = AugmentConfig(flip=True, rand_augment=1, magnitude=1)
    mirrored = 0
    for seed in range(6):
        plain, heard = fit_clip(
            encoded, Video(8, 32, 64), Audio(5120, 1, 16000), Look(np.random.default_rng(seed))
        )
        changed, sound = fit_clip(
            encoded,
            Video(8, 32, 64),
            Audio(5120, 1, 16000),
            Look(np.random.default_rng(seed), augment),
        )
        assert np.array_equal(sound, heard)
        mirrored += not np.array_equal(plain, changed)
    assert mirrored > 2


def test_views_are_spread_over_time_and_along_the_longer_side(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf
) -> None:
    wave = noise(38400)
    encoded = clip(encode_video(numbered(60), 25, wave, 16000))
    for time, first in ((0.0, 0), (0.5, 26), (1.0, 52)):
        look = Look(place=Place(time, 0.5))
        assert numbers_of(fit_video(encoded, Video(8, 32, 64), look))[0] == first
        frames, sound = fit_clip(encoded, Video(8, 32, 64), Audio(5120, 1, 16000), look)
        assert numbers_of(frames)[0] == first
        begin = first * 640
        assert np.abs(sound - wave[:, begin : begin + 5120]).mean() < 0.05
    bars = np.zeros((2, 32, 96, 3), np.uint8)
    bars[:, :, :32], bars[:, :, 64:] = 100, 200
    wide = clip(encode_video(bars, qp="0"))
    for along, value in ((0.0, 100), (0.5, 0), (1.0, 200)):
        found = fit_video(wide, Video(2, 16, 16), Look(place=Place(0.5, along)))
        assert np.abs(found[..., 1:-1].astype(int) - value).max() <= 8


def test_a_turned_video_is_shown_upright(encode_video: EncodeVideo) -> None:
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    frames[:, :, :16] = 255  # A white bar on the left of what is stored.
    data = bytearray(encode_video(frames))
    place = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[place : place + 36])[0] == 1 << 16
    # Shown turned by 90 degrees clockwise, as telephones do: the bar is then at the top.
    data[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    encoded = clip(bytes(data))
    assert native_video(encoded) == Video(2, 48, 32, 3, frame_rate=25.0)
    found = fit_video(encoded, Video(2, 48, 32))
    assert found[:, :, :12].min() > 200
    assert found[:, :, 20:].max() < 50


# As in ISO 14496-12: where the axes of the stored frame point, and what NumPy makes of it.
MATRICES: list[tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = [
    ((1, 0, 0, 1), lambda x: x),
    ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    ((0, -1, 1, 0), lambda x: np.rot90(x)),
    ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    ((1, 0, 0, -1), lambda x: x[::-1]),
    ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    ((0, -1, -1, 0), lambda x: x[::-1, ::-1].swapaxes(0, 1)),
]


@pytest.mark.parametrize(("axes", "change"), MATRICES, ids=[str(axes) for axes, _ in MATRICES])
def test_a_video_is_turned_and_mirrored_as_its_matrix_says(
    encode_video: EncodeVideo, axes: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    stored = np.zeros((32, 48), np.uint8)
    stored[:16, :16], stored[16:, :16] = 250, 120  # No turn of it equals another.
    data = bytearray(encode_video(np.repeat(stored[None, :, :, None], 2, 0).repeat(3, -1)))
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in axes)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    expected = change(stored)
    found = fit_video(clip(bytes(data)), Video(1, *expected.shape))[0, 0].astype(int)
    inner = np.abs(found - expected)[2:-2, 2:-2]
    assert np.percentile(inner, 85) < 20
    for other in (expected[::-1], expected[:, ::-1]):
        assert np.percentile(np.abs(found - other), 85) > 50


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
@pytest.mark.parametrize(
    ("ratio", "width"), [(Fraction(2), 64), (Fraction(1, 2), 16), (Fraction(1), 32)]
)
def test_pixels_that_are_not_square_are_shown_in_their_shape(
    encode_video: EncodeVideo, kind: str, codec: str, ratio: Fraction, width: int
) -> None:
    frames = np.zeros((2, 64, 32, 3), np.uint8)
    frames[:, 16:48, 8:24] = 255  # A square where pixels are twice as wide as high.
    encoded = clip(encode_video(frames, kind=kind, codec=codec, pixel_ratio=ratio))
    assert native_video(encoded) == Video(2, 64, width, 3, frame_rate=25.0)
    found = fit_video(encoded, Video(1, 64, width))[0, 0] > 128
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert abs(np.ptp(rows) + 1 - 32) <= 2
    assert abs(np.ptp(columns) + 1 - 16 * float(ratio)) <= 2


def test_pixels_of_no_likely_shape_are_refused(encode_video: EncodeVideo) -> None:
    data = bytearray(encode_video(np.zeros((2, 16, 16, 3), np.uint8), pixel_ratio=Fraction(2)))
    place = data.index(b"pasp") + 4
    data[place : place + 8] = struct.pack(">2I", 100, 1)
    with pytest.raises(DataError, match=r"a\.mp4: states a pixel aspect ratio of 100"):
        native_video(clip(bytes(data)))


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_picture_and_sound_begin_at_the_same_moment(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf, kind: str
) -> None:
    wave = noise(38400)
    encoded = clip(encode_video(numbered(60), 25, wave, 16000, kind=kind, g="12"))
    rng, seen = np.random.default_rng(0), set()
    for draw in (None, *[rng] * 6):
        frames, sound = fit_clip(encoded, Video(8, 32, 64), Audio(5120, 1, 16000), Look(draw))
        numbers = numbers_of(frames)
        assert numbers == list(range(numbers[0], numbers[0] + 8))
        first = numbers[0] * 640
        assert np.abs(sound - wave[:, first : first + 5120]).mean() < 0.05
        assert np.abs(sound - np.roll(wave, -16)[:, first : first + 5120]).mean() > 0.1
        seen.add(numbers[0])
    assert len(seen) > 3
    assert numbers_of(fit_clip(encoded, Video(8, 32, 64), Audio(5120))[0])[0] == 26


def test_the_longer_of_picture_and_sound_is_centred(
    encode_video: EncodeVideo, numbered: Numbered, numbers_of: NumbersOf
) -> None:
    wave = noise(38400)
    encoded = clip(encode_video(numbered(60), 25, wave, 16000))
    frames, sound = fit_clip(encoded, Video(8, 32, 64), Audio(25600, 1, 16000))
    assert numbers_of(frames)[0] == 10
    assert np.abs(sound - wave[:, 6400:32000]).mean() < 0.05
    frames, sound = fit_clip(encoded, Video(70, 32, 64), Audio(48000, 1, 16000))
    assert numbers_of(frames) == [*range(60), *[59] * 10]
    assert not sound[:, 40960:].any()


def test_sound_may_lie_in_a_file_of_its_own(
    encode_video: EncodeVideo, encode_sound: EncodeSound, numbered: Numbered, numbers_of: NumbersOf
) -> None:
    wave = (np.arange(16000, dtype=np.float32) / 2**15)[None]
    track = Encoded("a.flac", encode_sound(wave, 8000), "audio")
    picture = clip(encode_video(numbered(50), 25))
    frames, sound = fit_clip(
        picture, Video(5, 32, 64), Audio(1600), Look(np.random.default_rng(0)), sound=track
    )
    first = numbers_of(frames)[0] * 320
    assert first > 0
    assert np.array_equal(sound, wave[:, first : first + 1600])


def test_decoding_begins_again_where_a_container_went_too_far(
    encode_video: EncodeVideo,
    numbered: Numbered,
    numbers_of: NumbersOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = clip(encode_video(numbered(30), g="10"))
    monkeypatch.setattr(FrameTimes, "key_before", lambda self, number: 20)
    assert numbers_of(fit_video(encoded, Video(6, 32, 64))) == list(range(12, 18))


def write_sizes(sizes: list[tuple[int, int]]) -> bytes:
    """Write single pictures of some widths and heights into one stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        for number, (width, height) in enumerate(sizes):
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 25)
            frame = av.VideoFrame(width, height, "yuvj420p")
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.pts, packet.dts = stream, number, number
                container.mux(packet)
    return file.getvalue()


def test_a_size_that_changes_is_refused() -> None:
    same = clip(write_sizes([(64, 32)] * 6))
    assert fit_video(same, Video(6, 8, 8)).shape == (3, 6, 8, 8)
    changing = clip(write_sizes([(64, 32)] * 4 + [(64, 64)] * 2))
    with pytest.raises(DataError, match=r"a\.mp4: the size changes from 64x32 to 64x64 at frame 4"):
        fit_video(changing, Video(6, 8, 8))


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS)
def test_a_file_cut_short_is_refused(
    encode_video: EncodeVideo, numbered: Numbered, kind: str, codec: str
) -> None:
    data = encode_video(numbered(60), kind=kind, codec=codec)
    with pytest.raises(DataError, match=r"^cut\.mp4: .+"):
        fit_video(clip(data[: len(data) // 2], "cut.mp4"), Video(60, 8, 8))


def test_damage_never_escapes_and_is_never_printed(
    encode_video: EncodeVideo, numbered: Numbered, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encode_video(numbered(20), 25, noise(12800))
    rng, reasons = np.random.default_rng(0), []
    for _ in range(12):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), 12):
            changed[place] = rng.integers(256)
        try:
            fit_clip(clip(bytes(changed), "bad.mp4"), Video(20, 8, 8), Audio(1000))
        except DataError as error:
            reasons.append(str(error))
    assert len(reasons) > 3
    assert all(reason.startswith("bad.mp4: ") for reason in reasons)
    assert capfd.readouterr() == ("", "")


def test_what_is_no_video_is_refused(encode_sound: EncodeSound) -> None:
    sound = clip(encode_sound(noise(4000)), "a.flac")
    with pytest.raises(DataError, match=r"a\.flac: contains no video .*; streams found: audio"):
        fit_video(sound, Video(2, 8, 8))
    with pytest.raises(DataError, match=r"a\.mp4: the file is empty \(0 bytes\)"):
        fit_video(clip(b""), Video(2, 8, 8))
    with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded \(Invalid data"):
        fit_video(clip(b"y" * 500), Video(2, 8, 8))


def test_only_what_lies_behind_the_key_frame_is_decoded(
    encode_video: EncodeVideo,
    numbered: Numbered,
    numbers_of: NumbersOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = clip(encode_video(numbered(200), g="10"))
    decoded: list[int] = []
    find = FrameTimes.find

    def count(self: FrameTimes, stamp: int | None, place: int) -> int:
        decoded.append(place)
        return find(self, stamp, place)

    monkeypatch.setattr(FrameTimes, "find", count)
    look = Look(place=Place(1.0))
    assert numbers_of(fit_video(encoded, Video(4, 32, 64), look)) == [196, 197, 198, 199]
    # From frame 190 on, and nothing of the 190 before.
    assert len(decoded) <= 12


def test_a_long_film_stays_on_the_disk_and_its_times_are_read_once(
    encode_video: EncodeVideo,
    numbered: Numbered,
    numbers_of: NumbersOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "long.mp4"
    wave = noise(38400)
    data = encode_video(numbered(60), 25, wave, 16000, g="12")
    path.write_bytes(data)
    calls: list[str] = []
    read = video_clips.read_frame_times

    def count(container: Any, path: str) -> FrameTimes:
        calls.append(path)
        return read(container, path)

    monkeypatch.setattr(video_clips, "read_frame_times", count)
    film = Encoded(str(path), None, "video")
    specs = Video(8, 32, 64), Audio(2560, 1, 8000)
    for seed in range(3):
        found = fit_clip(film, *specs, Look(np.random.default_rng(seed)))
        expected = fit_clip(clip(data), *specs, Look(np.random.default_rng(seed)))
        assert numbers_of(found[0]) == numbers_of(expected[0])
        assert np.array_equal(found[1], expected[1])
        # At another rate, sound begins with the frame all the same.
        first = numbers_of(found[0])[0] * 640
        assert np.abs(found[1] - wave[:, first : first + 5120 : 2]).mean() < 0.06
    assert calls.count(str(path)) == 1
    path.write_bytes(encode_video(numbered(9), 25, wave[:, :5760], 16000))
    assert numbers_of(fit_video(film, Video(9, 32, 64))) == list(range(9))


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_frames_of_different_length_have_the_rate_that_is_measured(kind: str) -> None:
    times = [0, 40, 80, 1000, 1040, 3000]
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height = stream.width = 16
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 50 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    encoded = clip(file.getvalue())
    native = native_video(encoded)
    assert native.frame_rate == pytest.approx(5 / 3, rel=1e-4)
    # Instants are 0.6 s apart, from the second frame on, and reach to the end.
    found = fit_video(encoded, native)[0, :, 8, 8].astype(int)
    assert np.abs(found - [50, 150, 200, 200, 250, 250]).max() <= 4


def test_transparent_parts_of_frames_are_white_as_those_of_pictures() -> None:
    frame = np.zeros((16, 16, 4), np.uint8)
    frame[..., 0] = 255
    frame[:8, :, 3] = 255
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream: Any = container.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgba"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgba")))
        container.mux(stream.encode(None))
    found = fit_video(clip(file.getvalue()), Video(1, 16, 16))[:, 0, :, 8]
    assert found[:, 2].tolist() == [255, 0, 0]
    assert found[:, 12].tolist() == [255, 255, 255]


@pytest.mark.parametrize("size", [(33, 17), (16, 15)])
@pytest.mark.parametrize(
    ("kind", "codec"), [("webm", "libvpx-vp9"), ("matroska", "ffv1"), ("avi", "ffv1")]
)
def test_odd_sizes_keep_their_last_row_and_column(
    encode_video: EncodeVideo, kind: str, codec: str, size: tuple[int, int]
) -> None:
    height, width = size
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[:, -3:], frames[:, :, -3:] = 250, 250
    encoded = clip(encode_video(frames, kind=kind, codec=codec))
    native = native_video(encoded)
    assert (native.height, native.width) == size
    found = fit_video(encoded, Video(1, height, width))[0, 0].astype(int)
    assert np.abs(found - frames[0, :, :, 0]).mean() < 8
    assert found[-1].min() > 200
    assert found[:, -1].min() > 200
