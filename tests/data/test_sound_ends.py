"""Sound files that were cut short, and whole ones of odd writers."""

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
import soundfile

from perceivers.data.audio_clips import check_ogg_end, fit_audio, native_audio
from perceivers.data.sources import Encoded
from perceivers.errors import DataError
from perceivers.types import Audio

EncodeSound = Callable[..., bytes]


def noise(samples: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32)


def check(data: bytes, path: str) -> int:
    return native_audio(Encoded(path, data, "audio")).samples


def with_size(wav: bytes, size: int) -> bytes:
    """State another size of the samples, which follow 44 bytes of headers."""
    assert wav[36:40] == b"data"
    return wav[:40] + size.to_bytes(4, "little") + wav[44:]


def test_a_wav_that_was_cut_short_is_named(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    assert len(wav) == 2044
    check(wav, "a.wav")
    message = r"^a\.wav: ends after 1256 of 2000 bytes of audio; the file is damaged or cut short$"
    for read in (native_audio, lambda clip: fit_audio(clip, Audio(10))):
        with pytest.raises(DataError, match=message):
            read(Encoded("a.wav", wav[:1300], "audio"))
    assert native_audio(Encoded("a.wav", wav, "audio")).samples == 1000


def test_chunks_before_the_samples_are_passed_over(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    odd = wav[:36] + b"LIST" + (5).to_bytes(4, "little") + b"data\x00" + b"\x00" + wav[36:]
    check(odd, "a.wav")
    with pytest.raises(DataError, match=r"ends after 1900 of 2000 bytes"):
        check(odd[:-100], "a.wav")
    check(odd + b"LIST\x00\x00\x00\x00", "a.wav")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_states_no_size(encode_sound: EncodeSound, size: int) -> None:
    wav = with_size(encode_sound(noise(1000), kind="WAV"), size)
    check(wav, "a.wav")


def test_a_size_that_counts_the_header_is_let_pass(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    check(with_size(wav, len(wav)), "a.wav")
    with pytest.raises(DataError, match=r"ends after 2000 of 2065 bytes"):
        check(with_size(wav, 2065), "a.wav")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_was_cut_short_is_named(subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, noise(96000)[0], 48000, format="OGG", subtype=subtype)
    ogg = file.getvalue()
    check(ogg, "a.ogg")
    assert native_audio(Encoded("a.ogg", ogg, "audio")).samples == 96000
    for length in (len(ogg) - 1, ogg.rfind(b"OggS"), ogg.rfind(b"OggS") + 10, len(ogg) // 2):
        message = rf"^a\.ogg: the last page of audio is missing after {length} bytes; the file is"
        with pytest.raises(DataError, match=message):
            check_ogg_end(io.BytesIO(ogg[:length]), "a.ogg")
        with pytest.raises(DataError, match=r"^a\.ogg: "):
            check(ogg[:length], "a.ogg")
    assert check(ogg + b"TAG", "a.ogg") == 96000


def with_tag(mp3: bytes) -> bytes:
    """Put a tag of 300 bytes before the first frame."""
    return b"ID3\x04\0\0" + bytes([0, 0, 300 >> 7, 300 & 127]) + bytes(300) + mp3


def middle_frame(mp3: bytes) -> int:
    """Return where a frame in the middle of a file begins."""
    with av.open(io.BytesIO(mp3), "r") as container:
        places = [packet.pos for packet in container.demux() if packet.pos is not None]
    return places[len(places) // 2]


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_an_mp3_that_was_cut_short_ends_within_a_frame(
    encode_sound: EncodeSound, rate: int
) -> None:
    mp3 = encode_sound(noise(5 * rate), rate, "MP3")
    for whole in (mp3, with_tag(mp3)):
        assert native_audio(Encoded("a.mp3", whole, "audio")).samples >= 5 * rate
        cut = whole[: middle_frame(whole) + 40]
        message = r"^a\.mp3: ends within a frame after 2\.\d\d of 5\.\d\d s; .*cut short$"
        with pytest.raises(DataError, match=message):
            native_audio(Encoded("a.mp3", cut, "audio"))


def test_an_mp3_that_an_editor_cut_between_frames_is_merely_shorter(
    encode_sound: EncodeSound,
) -> None:
    mp3 = encode_sound(noise(80000), 16000, "MP3")
    middle = middle_frame(mp3)
    assert 35000 < native_audio(Encoded("a.mp3", mp3[:middle], "audio")).samples < 45000
    with pytest.raises(DataError, match="ends within a frame"):
        native_audio(Encoded("a.mp3", mp3[: middle - 3], "audio"))


@pytest.mark.parametrize(
    ("kind", "subtype", "endian"),
    [
        ("WAV", "PCM_16", "BIG"),
        ("WAVEX", "FLOAT", "FILE"),
        ("RF64", "PCM_16", "FILE"),
        ("W64", "PCM_16", "FILE"),
        ("AIFF", "PCM_16", "FILE"),
        ("AIFF", "DOUBLE", "FILE"),
        ("AU", "PCM_16", "FILE"),
        ("CAF", "PCM_16", "FILE"),
        ("SVX", "PCM_16", "FILE"),
        ("FLAC", "PCM_16", "FILE"),
    ],
)
def test_sounds_of_every_container_that_were_cut_short_are_named(
    kind: str, subtype: str, endian: str
) -> None:
    file = io.BytesIO()
    soundfile.write(file, noise(2000)[0], 16000, subtype, endian, kind)
    data = file.getvalue()
    assert check(data, "x") == 2000
    with pytest.raises(DataError, match=r"^x: (ends after \d+ of \d+ bytes|cannot be decoded)"):
        fit_audio(Encoded("x", data[: len(data) * 3 // 5], "audio"), Audio(2000))


@pytest.mark.parametrize("samples", [2000, 400_000])
def test_the_last_page_of_an_ogg_is_measured(encode_sound: EncodeSound, samples: int) -> None:
    ogg = encode_sound(0.5 * np.sin(0.05 * np.arange(samples))[None], 16000, "OGG")
    last = check_ogg_end(io.BytesIO(ogg), "x")
    # A short file has one page of sound.
    assert (last == samples) == (samples == 2000)
    assert 0 < last <= samples
