"""WAV and Ogg files that were cut short, and whole ones of odd writers."""

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
import soundfile

from perceivers.data.audio_clips import fit_audio, native_audio
from perceivers.data.sound_ends import check_sound_end
from perceivers.data.sources import EncodedClip
from perceivers.errors import DataError
from perceivers.types import Audio

EncodeSound = Callable[..., bytes]


def noise(samples: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32)


def check(data: bytes, path: str) -> None:
    check_sound_end(io.BytesIO(data), path)


def with_size(wav: bytes, size: int) -> bytes:
    """State another size of the samples, which follow 44 bytes of headers."""
    assert wav[36:40] == b"data"
    return wav[:40] + size.to_bytes(4, "little") + wav[44:]


def test_a_wav_that_was_cut_short_is_named(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    assert len(wav) == 2044
    check(wav, "a.wav")
    message = r"^a\.wav: ends after 1256 of 2000 bytes of sound; the file is damaged or cut short$"
    for read in (native_audio, lambda clip: fit_audio(clip, Audio(10))):
        with pytest.raises(DataError, match=message):
            read(EncodedClip("a.wav", wav[:1300], "audio"))
    assert native_audio(EncodedClip("a.wav", wav, "audio")).samples == 1000


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
    assert native_audio(EncodedClip("a.ogg", ogg, "audio")).samples == 96000
    for length in (len(ogg) - 1, ogg.rfind(b"OggS"), ogg.rfind(b"OggS") + 10, len(ogg) // 2):
        message = rf"^a\.ogg: the last page of sound is missing after {length} bytes; the file is"
        with pytest.raises(DataError, match=message):
            check(ogg[:length], "a.ogg")
    check(ogg + b"TAG", "a.ogg")


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
        assert native_audio(EncodedClip("a.mp3", whole, "audio")).samples >= 5 * rate
        cut = whole[: middle_frame(whole) + 40]
        message = r"^a\.mp3: ends within a frame after 2\.\d\d of 5\.\d\d s; .*cut short$"
        with pytest.raises(DataError, match=message):
            native_audio(EncodedClip("a.mp3", cut, "audio"))


def test_an_mp3_that_an_editor_cut_between_frames_is_merely_shorter(
    encode_sound: EncodeSound,
) -> None:
    mp3 = encode_sound(noise(80000), 16000, "MP3")
    middle = middle_frame(mp3)
    assert 35000 < native_audio(EncodedClip("a.mp3", mp3[:middle], "audio")).samples < 45000
    with pytest.raises(DataError, match="ends within a frame"):
        native_audio(EncodedClip("a.mp3", mp3[: middle - 3], "audio"))


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_other_files_are_judged_elsewhere(encode_sound: EncodeSound, kind: str) -> None:
    data = encode_sound(noise(20000), kind=kind)
    check(data[: len(data) // 2], "a")
    check(b"", "a")
