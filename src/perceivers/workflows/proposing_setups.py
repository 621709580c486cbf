"""Choose a model and sizes for inspected data, small enough for minutes on two CPU cores.

With CUDA the choices are the same but larger. docs/data-check.md has the measurements behind them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from perceivers.data.inspecting import DataFacts, ModalityFacts

Purpose = Literal["label", "columns", "segment", "unlabelled"]
# Smaller images are read with one token per pixel.
SMALL_PICTURE = 48
# Sizes are multiples of these; a Hiera needs whole units of images, frames and audio.
UNIT, SOUND_UNIT = 16, 1024
TEXT_UNIT, POINTS_UNIT = 64, 8
# Settings of a short trunk: with eight heads it learns audio and texts faster (docs/log.md).
SHORT_TRUNK = {"num_cross_heads": 8, "qk_dim": 192, "v_dim": 192}
SPEECH_RATE = 16_000


@dataclass(frozen=True)
class SizeLimits:
    """Maximum input sizes.

    Args:
        side: Height and width of images and frames.
        frames: Frames of videos.
        samples: Samples of audio.
        length: Bytes of texts.
        points: Points of clouds.
    """

    side: int
    frames: int
    samples: int
    length: int
    points: int


# Several modalities together take more time per sample, so each gets smaller sizes.
ALONE = SizeLimits(side=64, frames=16, samples=32_768, length=256, points=512)
TOGETHER = SizeLimits(side=32, frames=8, samples=32_768, length=128, points=256)
ALONE_CUDA = SizeLimits(side=128, frames=16, samples=131_072, length=512, points=1024)
TOGETHER_CUDA = SizeLimits(side=64, frames=16, samples=65_536, length=256, points=512)


@dataclass(frozen=True)
class Setup:
    """Model and settings of a proposed run.

    Args:
        model: A variant.
        options: Settings of the training verbs other than model, data and out.
        recipe: Packaged recipe that the settings are based on; empty if there is none.
        reason: Explanation in one sentence.
    """

    model: str
    options: Mapping[str, Any]
    recipe: str
    reason: str


def choose_setup(
    facts: DataFacts, purpose: Purpose, *, cuda: bool, together: bool = False
) -> Setup:
    """Choose a model and its settings.

    Args:
        facts: Inspection of data with at least one readable training sample.
        purpose: ``label`` for labels or numbers, ``columns`` for several columns of classes,
            ``segment`` for a class per pixel or point, ``unlabelled`` for pre-training.
        cuda: Whether a CUDA GPU is available.
        together: Read all modalities, even if one of them alone takes fewer steps.
    """
    inputs = {n: m for n, m in facts.modalities.items() if m.kind != "mask"}
    read = {} if together or purpose != "label" else _sooner_alone(facts, inputs)
    inputs = read or inputs
    kinds = [m.kind for m in inputs.values()]
    named_plainly = list(inputs) == kinds
    # Of these models, only Perceiver IO has a query and a head per column.
    one = len(kinds) == 1 and named_plainly and purpose != "columns"
    alone = CHOICES.get(kinds[0]) if one else None
    if purpose == "segment":
        setup = _segmenting(facts, cuda)
    elif alone is not None:
        setup = alone(inputs[kinds[0]], purpose, cuda)
    else:
        setup = _several(inputs, purpose, cuda)
    if read:
        setup = replace(setup, options={"modalities": list(read), **setup.options})
    batch = min(int(setup.options["batch_size"]), max(2, facts.splits["train"].samples))
    return replace(setup, options={**setup.options, "batch_size": batch})


def _sooner_alone(
    facts: DataFacts, inputs: Mapping[str, ModalityFacts]
) -> dict[str, ModalityFacts]:
    """Select the audio of videos that all have sound, or the frames if most are silent.

    The result is empty for other data.
    """
    whole = all(len(split.combinations) == 1 for split in facts.splits.values())
    if set(inputs) != {"audio", "video"} or not whole:
        return {}
    sound = inputs["audio"]
    name = "video" if sound.flags.get("silent", 0) > sound.count / 2 else "audio"
    return {name: inputs[name]}


def size_input(facts: ModalityFacts, room: SizeLimits) -> dict[str, Any]:
    """Return spec fields for a modality, limited to maximum sizes.

    Args:
        facts: Inspection of the modality.
        room: Maximum sizes.

    Returns:
        Sizes that cover 95 % of the samples; audio in mono, at one rate of at most 16 kHz.
    """
    if facts.kind == "image":
        side = min(room.side, _up(_short_side(facts), UNIT))
        return {"height": side, "width": side}
    if facts.kind == "video":
        return _size_film(facts, room)
    if facts.kind == "audio":
        return _size_sound(facts, room)
    if facts.kind == "bytes":
        # Texts are measured in bytes or ids, documents by their windows.
        needed = int(max(size.high for size in facts.sizes.values()))
        return {"length": min(room.length, _up(needed, TEXT_UNIT))}
    if facts.kind == "points":
        return {"points": min(room.points, _up(int(facts.sizes["points"].high), POINTS_UNIT))}
    return {}


def _size_film(facts: ModalityFacts, room: SizeLimits) -> dict[str, Any]:
    """Spread the frames over a video of median length, at its own frame rate or below."""
    frames = max(2, min(room.frames, int(facts.sizes["frames"].high)) // 2 * 2)
    side = min(room.side, _up(_short_side(facts), UNIT))
    sizes: dict[str, Any] = {"frames": frames, "height": side, "width": side}
    if "seconds" in facts.sizes:
        native = facts.sizes["frames"].median / facts.sizes["seconds"].median
        sizes["frame_rate"] = float(f"{min(native, frames / facts.sizes['seconds'].median):.3g}")
    return sizes


def _size_sound(facts: ModalityFacts, room: SizeLimits) -> dict[str, Any]:
    """Cover nearly the whole recording, in mono."""
    channels = facts.values["channels"]
    mono = {"channels": 1} if set(channels) != {"1"} and "seconds" in facts.sizes else {}
    if "seconds" not in facts.sizes:
        needed = int(facts.sizes["samples"].most)
        return {"samples": min(room.samples, needed), **mono}
    rate = choose_rate(facts)
    samples = min(room.samples, _up(round(facts.sizes["seconds"].high * rate), SOUND_UNIT))
    return {"samples": samples, "sample_rate": rate, **mono}


def choose_rate(facts: ModalityFacts) -> int:
    """Return the sample rate for reading audio in Hz: the most common one, at most 16 kHz."""
    rates = {int(rate): count for rate, count in facts.values["sample rate in Hz"].items()}
    return min(SPEECH_RATE, max(rates, key=lambda rate: (rates[rate], rate)))


def _pictures(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    side = _short_side(facts)
    if side < SMALL_PICTURE and purpose == "label":
        return Setup(
            "perceiver_io_tiny",
            {"size": side, "batch_size": 64, "steps": 6000 if cuda else 600},
            "",
            f"A small Perceiver IO reads images of {side} pixels, with one token per pixel.",
        )
    size = size_input(facts, ALONE_CUDA if cuda else ALONE)["height"]
    crop = {"crop_ratio": [0.75, 1.3333], "crop_from": "picture", "flip": True}
    sizes = {"size": size, "batch_size": 32, "eval_every": 100, "checkpoint_every": 100}
    if purpose == "unlabelled":
        return Setup(
            "hiera_pico",
            {
                **sizes,
                "steps": 10_000 if cuda else 500,
                "optimizer": {"betas": [0.9, 0.95]},
                "schedule": {"warmup": 0.1},
                "augment": {"crop_scale": [0.2, 1.0], **crop},
            },
            "masked_photographs",
            f"A small Hiera reconstructs hidden squares of {size}-pixel crops.",
        )
    return Setup(
        "hiera_pico" if cuda else "hiera_nano",
        {
            **sizes,
            "steps": 5000 if cuda else 600,
            "optimizer": {"betas": [0.9, 0.999]},
            "schedule": {"warmup": 0.1},
            "augment": {"crop_scale": [0.35, 1.0], **crop},
        },
        "photograph_finetuning",
        f"A small Hiera is trained on crops of {size} pixels.",
    )


def _sounds(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    sizes = size_input(facts, ALONE_CUDA if cuda else ALONE)
    samples = _up(sizes["samples"], SOUND_UNIT)
    batch = 32 if samples <= 2**14 else 16
    options = {
        "inputs": {"audio": {**sizes, "samples": samples}},
        "batch_size": batch,
        "steps": 5000 if cuda else _steps(2**27, batch * samples),
        "eval_every": 100,
        "checkpoint_every": 100,
    }
    seconds = _seconds(samples, sizes)
    if purpose == "unlabelled":
        reason = f"A small Hiera reconstructs hidden parts of {seconds} of raw audio."
        return Setup("hiera_nano_audio", options, "", reason)
    reason = f"A small Hiera reads {seconds} of the raw waveform at a time."
    return Setup("hiera_nano_audio", options, "", reason)


def _films(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    sizes = size_input(facts, ALONE_CUDA if cuda else ALONE)
    options = {
        "inputs": {"video": sizes},
        "batch_size": 16,
        "steps": 5000 if cuda else 300,
        "optimizer": {"betas": [0.9, 0.95 if purpose == "unlabelled" else 0.999]},
        "schedule": {"warmup": 0.1},
        "eval_every": 50,
        "checkpoint_every": 50,
    }
    what = f"{sizes['frames']} frames of {sizes['height']} pixels spread over a clip"
    if purpose == "unlabelled":
        options["mask"] = {"ratio": 0.75}
        reason = f"A small Hiera reconstructs hidden parts of {what}."
        return Setup("hiera_nano_video", options, "masked_clips", reason)
    return Setup("hiera_nano_video", options, "clip_finetuning", f"A small Hiera reads {what}.")


def _texts(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    sizes = size_input(facts, ALONE_CUDA if cuda else ALONE)
    length = sizes["length"]
    if purpose == "unlabelled":
        length = min(length, 128)
        return Setup(
            "perceiver_io_text_tiny",
            {
                "task": "mlm",
                "inputs": {"bytes": {"length": length}},
                "mlm": {"ratio": 0.15, "unit": "word"},
                "batch_size": 64 if length <= 64 else 32,
                "steps": 10_000 if cuda else 600,
                "optimizer": {"lr": 0.002},
                "eval_every": 100,
                "checkpoint_every": 100,
            },
            "masked_bytes",
            f"A small Perceiver IO fills in hidden words in {length} bytes of text.",
        )
    return Setup(
        "hiera_nano_text",
        {
            "inputs": {"bytes": sizes},
            "batch_size": 64,
            "steps": 10_000 if cuda else 4000 if length <= 192 else 2500,
            "optimizer": {"lr": 0.002},
            "schedule": {"warmup": 0.1},
            "augment": {"word_drop": 0.3, "text_shift": 32},
            "ema": 0.99,
            "eval_every": 250,
            "checkpoint_every": 250,
        },
        "texts",
        f"A small Hiera reads the first {length} bytes of each text.",
    )


def _clouds(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    points = size_input(facts, ALONE_CUDA if cuda else ALONE)["points"]
    scaled: dict[str, Any] = {"points": points, "ragged": True, "scale": "unit"}
    options = {"inputs": {"points": scaled}, "batch_size": 32, "steps": 5000 if cuda else 300}
    options |= {"eval_every": 50, "checkpoint_every": 50}
    if purpose == "unlabelled":
        reason = f"A small Perceiver IO reconstructs {points} points per cloud from its latents."
        return Setup("perceiver_io_tiny", {"task": "autoencode", **options}, "", reason)
    reason = f"A small Perceiver reads up to {points} points per cloud."
    short = {"num_latents": 32, "depth": 2, "num_blocks": 2, "num_reads": 2}
    options |= {"model_options": {"trunk": short}, "steps": 10_000 if cuda else 500}
    options |= {"schedule": {"warmup": 0.1}, "augment": {"point_drop": 0.3}}
    return Setup("perceiver_tiny", options, "point_clouds", reason)


def _several(inputs: Mapping[str, ModalityFacts], purpose: Purpose, cuda: bool) -> Setup:
    """Several modalities, or arrays of any kind."""
    room = TOGETHER_CUDA if cuda else TOGETHER
    sizes = {name: size_input(facts, room) for name, facts in inputs.items()}
    options: dict[str, Any] = {
        "model_options": {"trunk": {"depth": 2, **SHORT_TRUNK}},
        "inputs": {name: fields for name, fields in sizes.items() if fields},
        "batch_size": 16,
        "steps": 5000 if cuda else 400,
        "eval_every": 50,
        "checkpoint_every": 50,
    }
    listed = " and ".join(inputs)
    if purpose == "unlabelled":
        options |= {"task": "autoencode", "autoencode": {"points": 512}}
        options["model_options"] = {"mask_tokens": True}
        recipe = "clip_autoencoding" if set(inputs) == {"audio", "video"} else ""
        reason = f"One small Perceiver IO reconstructs {listed} from its latents."
        return Setup("perceiver_io_tiny", options, recipe, reason)
    if purpose == "columns":
        recipe = "text_multitask" if listed == "bytes" else ""
        reason = f"One small Perceiver IO reads {listed} and predicts every column."
        return Setup("perceiver_io_tiny", options, recipe, reason)
    reason = f"One small Perceiver IO reads {listed}; samples may lack some of them."
    return Setup("perceiver_io_tiny", options, "", reason)


def _segmenting(facts: DataFacts, cuda: bool) -> Setup:
    if "image" not in facts.modalities:
        options = {"task": "segment", "steps": 5000 if cuda else 300, "eval_every": 50}
        options |= {"checkpoint_every": 50, "batch_size": 8}
        width = {"num_heads": 8, "qk_dim": 192, "v_dim": 192, "residual": True, "mlp_ratio": 4}
        options["model_options"] = {"decoder": width}
        reason = "A small Perceiver IO classifies every point of a tile."
        return Setup("perceiver_io_tiny", options, "point_segmentation", reason)
    size = size_input(facts.modalities["image"], ALONE_CUDA if cuda else ALONE)["height"]
    return Setup(
        "hiera_pico",
        {
            "task": "segment",
            "size": size,
            "batch_size": 16,
            "steps": 5000 if cuda else 300,
            "eval_every": 50,
            "checkpoint_every": 50,
        },
        "",
        f"A small Hiera classifies every pixel of {size}-pixel images.",
    )


def _short_side(facts: ModalityFacts) -> int:
    """Return the smaller of median width and median height, in pixels."""
    return int(min(facts.sizes["width"].median, facts.sizes["height"].median))


def _seconds(samples: int, sizes: Mapping[str, Any]) -> str:
    rate = sizes.get("sample_rate")
    return f"{samples / rate:.3g} s" if rate else f"{samples} samples"


def _steps(budget: int, cost: int) -> int:
    """Return how many steps of this cost a budget allows: in hundreds, from 300 to 1500."""
    return min(1500, max(300, budget // cost // 100 * 100))


def _up(value: int, unit: int) -> int:
    """Round up to a multiple of ``unit``."""
    return max(1, -(-value // unit)) * unit


CHOICES = {
    "image": _pictures,
    "audio": _sounds,
    "video": _films,
    "bytes": _texts,
    "points": _clouds,
}
