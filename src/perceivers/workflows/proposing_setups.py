"""A model and its sizes for data that were looked at, small enough for minutes on two CPU cores.

With CUDA the same choices are made larger. The figures that the choices rest on are in
docs/data-check.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from perceivers.data.inspecting import DataFacts, ModalityFacts

Purpose = Literal["label", "columns", "segment", "unlabelled"]
# Smaller pictures are read whole, pixel by pixel.
SMALL_PICTURE = 48
# Units of a Hiera's pictures and frames, and samples of its sound, divide their sizes.
UNIT, SOUND_UNIT = 16, 1024
TEXT_UNIT, POINTS_UNIT = 64, 8
# What a short trunk with eight heads changes: it learns sounds and texts faster (docs/log.md).
SHORT_TRUNK = {"num_cross_heads": 8, "qk_dim": 192, "v_dim": 192}
SPEECH_RATE = 16_000


@dataclass(frozen=True)
class Room:
    """The largest sizes that are read of each modality.

    Args:
        side: Rows and columns of pictures and frames.
        frames: Frames of films.
        samples: Samples of sounds.
        length: Bytes of texts.
        points: Points of clouds.
    """

    side: int
    frames: int
    samples: int
    length: int
    points: int


ALONE = Room(side=64, frames=16, samples=32_768, length=256, points=512)
TOGETHER = Room(side=32, frames=8, samples=32_768, length=128, points=256)
ALONE_CUDA = Room(side=128, frames=16, samples=131_072, length=512, points=1024)
TOGETHER_CUDA = Room(side=64, frames=16, samples=65_536, length=256, points=512)


@dataclass(frozen=True)
class Setup:
    """What a proposed run is made of.

    Args:
        model: A variant.
        options: Settings beside model, data and out, as the training verbs take them.
        recipe: The packaged recipe that it follows; none where there is no such recipe.
        reason: Why, in a sentence.
    """

    model: str
    options: Mapping[str, Any]
    recipe: str
    reason: str


def choose_setup(
    facts: DataFacts, purpose: Purpose, *, cuda: bool, together: bool = False
) -> Setup:
    """Choose a model and sizes.

    Args:
        facts: Of data of which a training sample can be read.
        purpose: Labels or numbers to be learned, several columns of classes at once, a class per
            pixel, or nothing but the samples.
        cuda: Whether a GPU of NVIDIA's is at hand.
        together: Read all modalities at once, also where one of them alone is learned sooner.
    """
    inputs = {n: m for n, m in facts.modalities.items() if m.kind != "mask"}
    read = {} if together or purpose != "label" else _sooner_alone(facts, inputs)
    inputs = read or inputs
    kinds = [m.kind for m in inputs.values()]
    named_plainly = list(inputs) == kinds
    # Of the models here, Perceiver IO alone has a query and a head for each column.
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
    """Return what is read of films that all have sound: the sound, unless most are silent."""
    whole = all(len(split.combinations) == 1 for split in facts.splits.values())
    if set(inputs) != {"audio", "video"} or not whole:
        return {}
    sound = inputs["audio"]
    name = "video" if sound.flags.get("silent", 0) > sound.count / 2 else "audio"
    return {name: inputs[name]}


def size_input(facts: ModalityFacts, room: Room) -> dict[str, Any]:
    """Return the fields of a spec that fit a modality into some room.

    Args:
        facts: What was found.
        room: The largest sizes.

    Returns:
        Sizes no larger than 95 of 100 samples need; sound in mono at one rate of at most 16 kHz.
    """
    if facts.kind == "image":
        side = min(room.side, _up(_short_side(facts), UNIT))
        return {"height": side, "width": side}
    if facts.kind == "video":
        return _size_film(facts, room)
    if facts.kind == "audio":
        return _size_sound(facts, room)
    if facts.kind == "bytes":
        # Texts have bytes or ids, documents are as long as their windows.
        needed = int(max(size.high for size in facts.sizes.values()))
        return {"length": min(room.length, _up(needed, TEXT_UNIT))}
    if facts.kind == "points":
        return {"points": min(room.points, _up(int(facts.sizes["points"].high), POINTS_UNIT))}
    return {}


def _size_film(facts: ModalityFacts, room: Room) -> dict[str, Any]:
    """Spread the frames over a film of median length, at its own rate or below."""
    frames = max(2, min(room.frames, int(facts.sizes["frames"].high)) // 2 * 2)
    side = min(room.side, _up(_short_side(facts), UNIT))
    sizes: dict[str, Any] = {"frames": frames, "height": side, "width": side}
    if "seconds" in facts.sizes:
        native = facts.sizes["frames"].median / facts.sizes["seconds"].median
        sizes["frame_rate"] = float(f"{min(native, frames / facts.sizes['seconds'].median):.3g}")
    return sizes


def _size_sound(facts: ModalityFacts, room: Room) -> dict[str, Any]:
    """Read nearly all of a sound, in mono."""
    channels = facts.values["channels"]
    mono = {"channels": 1} if set(channels) != {"1"} and "seconds" in facts.sizes else {}
    if "seconds" not in facts.sizes:
        needed = int(facts.sizes["samples"].most)
        return {"samples": min(room.samples, needed), **mono}
    rate = choose_rate(facts)
    samples = min(room.samples, _up(round(facts.sizes["seconds"].high * rate), SOUND_UNIT))
    return {"samples": samples, "sample_rate": rate, **mono}


def choose_rate(facts: ModalityFacts) -> int:
    """Return the sample rate in Hz to read sounds at: the most common one, at most 16 kHz."""
    rates = {int(rate): count for rate, count in facts.values["sample rate in Hz"].items()}
    return min(SPEECH_RATE, max(rates, key=lambda rate: (rates[rate], rate)))


def _pictures(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    """Pictures alone."""
    side = _short_side(facts)
    if side < SMALL_PICTURE and purpose == "label":
        return Setup(
            "perceiver_io_tiny",
            {"size": side, "batch_size": 64, "steps": 6000 if cuda else 600},
            "",
            f"Pictures of {side} pixels are read whole, one token per pixel.",
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
            f"A small Hiera reconstructs hidden squares of crops of {size} pixels.",
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
        f"A small Hiera learns photographs from crops of {size} pixels.",
    )


def _sounds(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    """Sounds alone."""
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
        reason = f"A small Hiera reconstructs hidden stretches of {seconds} of raw sound."
        return Setup("hiera_nano_audio", options, "", reason)
    reason = f"A small Hiera reads {seconds} of the raw waveform at a time."
    return Setup("hiera_nano_audio", options, "", reason)


def _films(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    """Films without sound."""
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
    what = f"{sizes['frames']} frames of {sizes['height']} pixels from the length of a clip"
    if purpose == "unlabelled":
        options["mask"] = {"ratio": 0.75}
        reason = f"A small Hiera reconstructs hidden parts of {what}."
        return Setup("hiera_nano_video", options, "masked_clips", reason)
    return Setup("hiera_nano_video", options, "clip_finetuning", f"A small Hiera reads {what}.")


def _texts(facts: ModalityFacts, purpose: Purpose, cuda: bool) -> Setup:
    """Texts alone."""
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
            f"A small Perceiver IO fills in hidden words of {length} bytes of text.",
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
    """Point sets alone."""
    points = size_input(facts, ALONE_CUDA if cuda else ALONE)["points"]
    scaled: dict[str, Any] = {"points": points, "ragged": True, "scale": "unit"}
    options = {"inputs": {"points": scaled}, "batch_size": 32, "steps": 5000 if cuda else 300}
    options |= {"eval_every": 50, "checkpoint_every": 50}
    if purpose == "unlabelled":
        reason = f"A small Perceiver IO gives back {points} points per cloud through its latents."
        return Setup("perceiver_io_tiny", {"task": "autoencode", **options}, "", reason)
    reason = f"The original Perceiver, small, reads up to {points} points per cloud."
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
        reason = f"One latent array takes in {listed} and gives both back."
        return Setup("perceiver_io_tiny", options, recipe, reason)
    if purpose == "columns":
        recipe = "text_multitask" if listed == "bytes" else ""
        reason = f"One small Perceiver IO reads {listed} and answers every column."
        return Setup("perceiver_io_tiny", options, recipe, reason)
    reason = f"One small Perceiver IO reads {listed}; samples may lack some of them."
    return Setup("perceiver_io_tiny", options, "", reason)


def _segmenting(facts: DataFacts, cuda: bool) -> Setup:
    """Pictures with a class per pixel, or points with a class each."""
    if "image" not in facts.modalities:
        options = {"task": "segment", "steps": 5000 if cuda else 300, "eval_every": 50}
        options |= {"checkpoint_every": 50, "batch_size": 8}
        width = {"num_heads": 8, "qk_dim": 192, "v_dim": 192, "residual": True, "mlp_ratio": 4}
        options["model_options"] = {"decoder": width}
        reason = "A small Perceiver IO gives every point of a tile a class."
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
        f"A small Hiera gives every pixel of {size}-pixel pictures a class.",
    )


def _short_side(facts: ModalityFacts) -> int:
    """Return the shorter median side in pixels."""
    return int(min(facts.sizes["width"].median, facts.sizes["height"].median))


def _seconds(samples: int, sizes: Mapping[str, Any]) -> str:
    """Say how long a number of samples is."""
    rate = sizes.get("sample_rate")
    return f"{samples / rate:.3g} s" if rate else f"{samples} samples"


def _steps(budget: int, cost: int) -> int:
    """Return the steps that a budget pays for, in hundreds within 300 and 1500."""
    return min(1500, max(300, budget // cost // 100 * 100))


def _up(value: int, unit: int) -> int:
    """Round up to a multiple."""
    return max(1, -(-value // unit)) * unit


CHOICES = {
    "image": _pictures,
    "audio": _sounds,
    "video": _films,
    "bytes": _texts,
    "points": _clouds,
}
