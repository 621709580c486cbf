"""WAV and Ogg files that were cut short, and whole ones of odd writers."""

import io
from collections.abc import Callable

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


def with_size(wav: bytes, size: int) -> bytes:
    """State another size of the samples, which follow 44 bytes of headers."""
    assert wav[36:40] == b"data"
    return wav[:40] + size.to_bytes(4, "little") + wav[44:]


def test_a_wav_that_was_cut_short_is_named(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    assert len(wav) == 2044
    check_sound_end(wav, "a.wav")
    message = r"^a\.wav: ends after 1256 of 2000 bytes of sound; the file is damaged or cut short$"
    for read in (native_audio, lambda clip: fit_audio(clip, Audio(10))):
        with pytest.raises(DataError, match=message):
            read(EncodedClip("a.wav", wav[:1300], "audio"))
    assert native_audio(EncodedClip("a.wav", wav, "audio")).samples == 1000


def test_chunks_before_the_samples_are_passed_over(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    odd = wav[:36] + b"LIST" + (5).to_bytes(4, "little") + b"data\x00" + b"\x00" + wav[36:]
    check_sound_end(odd, "a.wav")
    with pytest.raises(DataError, match=r"ends after 1900 of 2000 bytes"):
        check_sound_end(odd[:-100], "a.wav")
    check_sound_end(odd + b"LIST\x00\x00\x00\x00", "a.wav")


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_states_no_size(encode_sound: EncodeSound, size: int) -> None:
    wav = with_size(encode_sound(noise(1000), kind="WAV"), size)
    check_sound_end(wav, "a.wav")


def test_a_size_that_counts_the_header_is_let_pass(encode_sound: EncodeSound) -> None:
    wav = encode_sound(noise(1000), kind="WAV")
    check_sound_end(with_size(wav, len(wav)), "a.wav")
    with pytest.raises(DataError, match=r"ends after 2000 of 2065 bytes"):
        check_sound_end(with_size(wav, 2065), "a.wav")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_was_cut_short_is_named(subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, noise(96000)[0], 48000, format="OGG", subtype=subtype)
    ogg = file.getvalue()
    check_sound_end(ogg, "a.ogg")
    assert native_audio(EncodedClip("a.ogg", ogg, "audio")).samples == 96000
    for length in (len(ogg) - 1, ogg.rfind(b"OggS"), ogg.rfind(b"OggS") + 10, len(ogg) // 2):
        message = rf"^a\.ogg: the last page of sound is missing after {length} bytes; the file is"
        with pytest.raises(DataError, match=message):
            check_sound_end(ogg[:length], "a.ogg")
    check_sound_end(ogg + b"TAG", "a.ogg")


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_other_files_are_judged_elsewhere(encode_sound: EncodeSound, kind: str) -> None:
    data = encode_sound(noise(20000), kind=kind)
    check_sound_end(data[: len(data) // 2], "a")
    check_sound_end(b"", "a")
