"""Named Perceiver IO variants, and their completion to a full configuration.

Released models, larger models from the paper, and small models for two CPU cores. Released models
differ not only in their sizes but also in residual connections, coordinates of queries and masking
(docs/perceiver-io.md, deviations). The small models are perceiver_io_nano (trains in seconds),
perceiver_io_tiny (minutes), perceiver_io_text_tiny and perceiver_io_flow_tiny.
Paper: Perceiver IO (arXiv 2107.14795), table of configurations in App. E.
"""

from collections.abc import Mapping
from typing import Any

from perceivers.adapters.config import (
    PositionConfig,
    TokenConfig,
    build_nested,
    change_fields,
)
from perceivers.errors import ConfigError
from perceivers.models.flat.trunk import TrunkConfig, choose_tokens
from perceivers.models.perceiver_io.config import DecoderConfig, Output, PerceiverIOConfig
from perceivers.settings import change, named, settle
from perceivers.types import (
    BYTE_VOCABULARY,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Array,
    Audio,
    Bytes,
    Image,
    Labels,
    ModalitySpec,
    Points,
    Video,
)

IMAGENET = Image(224, 224, 3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
CLIP = Video(16, 224, 224, 3, frame_rate=25.0)
# The flow model gets frames as 2 x / 255 - 1.
FRAMES = Video(2, 368, 496, 3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET_CLASSES, KINETICS_CLASSES, AUDIOSET_CLASSES = 1000, 700, 527


def fourier(bands: int, *resolution: int, **settings: Any) -> PositionConfig:
    """Return Fourier positions with ``bands`` frequencies and one resolution per axis."""
    return PositionConfig(
        kind="fourier", num_bands=bands, max_resolution=resolution or None, **settings
    )


def one_query(dim: int, classes: int) -> dict[str, Output]:
    """Return the output of a classifier: one learned query."""
    return {"classes": Output(dim=dim, channels=classes)}


def imagenet(tokens: TokenConfig, *, residual: bool, **trunk: Any) -> Mapping[str, Any]:
    """Return an ImageNet classifier; by default 8 blocks that share 6 layers."""
    settings = {"num_blocks": 8, "depth": 6, **trunk}
    return {
        "inputs": {"image": IMAGENET},
        "tokens": {"image": tokens},
        "trunk": settle(TrunkConfig, {"num_latents": 512, "latent_dim": 1024, **settings}),
        "outputs": one_query(1024, IMAGENET_CLASSES),
        "decoder": DecoderConfig(residual=residual),
        "init": "paper",
    }


def language(latent_dim: int, depth: int) -> Mapping[str, Any]:
    """Return a masked language model: 2048 bytes, 2048 learned queries, tied embedding."""
    return {
        "inputs": {"bytes": Bytes(2048)},
        "tokens": {"bytes": text_tokens(768)},
        "trunk": TrunkConfig(
            num_latents=256,
            latent_dim=latent_dim,
            depth=depth,
            num_cross_heads=8,
            qk_dim=256,
            v_dim=latent_dim,
        ),
        "outputs": {"bytes": Output(length=2048, dim=768, modality="bytes", head="tied")},
        "decoder": DecoderConfig(num_heads=8, qk_dim=256, v_dim=768),
        "init": "paper",
    }


def text_tokens(dim: int) -> TokenConfig:
    """Return tokens made of byte embeddings and added learned positions."""
    return TokenConfig(
        content="embedding",
        dim=dim,
        positions=PositionConfig(kind="learned", dim=dim, combine="add"),
    )


def flow(
    *, latents: int, depth: int, latent_dim: int = 512, heads: int = 16, dim: int = 64, bands: int
) -> Mapping[str, Any]:
    """Return an optical-flow model: 3x3 patches of two frames, one token and query per pixel."""
    positions = fourier(bands, 368, 496)
    return {
        "inputs": {"video": FRAMES},
        "tokens": {"video": TokenConfig(content="frame_patches", dim=dim, positions=positions)},
        "trunk": TrunkConfig(
            num_latents=latents, latent_dim=latent_dim, depth=depth, num_heads=heads
        ),
        "outputs": {
            "flow": Output(queries="tokens", modality="video", channels=2, divide_by=100.0)
        },
        "init": "paper",
    }


def kinetics(latents: int) -> Mapping[str, Any]:
    """Return a multimodal autoencoder of video, audio and label."""
    video = fourier(32, 16, 56, 56)
    audio = fourier(192, 30720)
    return {
        "inputs": {
            "audio": Audio(30720, sample_rate=48000),
            "video": CLIP,
            "label": Labels(KINETICS_CLASSES),
        },
        "tokens": {
            "audio": TokenConfig(content="patches", patch=(16,), positions=audio),
            "video": TokenConfig(content="patches", patch=(1, 4, 4), positions=video),
            "label": TokenConfig(mask_rate=1.0),
        },
        "trunk": TrunkConfig(num_latents=latents, latent_dim=512, depth=8),
        "outputs": {
            "audio": Output(
                queries="positions",
                modality="audio",
                positions=audio,
                patch=(16,),
                channels=1,
                sampled="cell",
            ),
            "video": Output(
                queries="positions",
                modality="video",
                positions=video,
                channels=3,
                sampled="cell",
            ),
            "label": Output(dim=1024, channels=KINETICS_CLASSES),
        },
        "decoder": DecoderConfig(project=512),
        "mask_tokens": True,
        "init": "paper",
    }


def audioset(sound: Mapping[str, Any], dim: int) -> Mapping[str, Any]:
    """Return a multi-label classifier of audio and video: 32 frames in 2x8x8 patches."""
    # The paper does not state the number of heads; these are the defaults.
    video = fourier(16, 16, 28, 28)
    return {
        "inputs": {"audio": sound["spec"], "video": Video(32, 224, 224, 3, frame_rate=25.0)},
        "tokens": {
            "audio": sound["tokens"],
            "video": TokenConfig(content="patches", patch=(2, 8, 8), positions=video),
        },
        "trunk": TrunkConfig(num_latents=512, latent_dim=dim, depth=12),
        "outputs": one_query(1024, AUDIOSET_CLASSES),
        "init": "paper",
    }


RAW_SOUND = {
    "spec": Audio(61440, sample_rate=48000),
    "tokens": TokenConfig(content="patches", patch=(128,), positions=fourier(64, 480)),
}
MEL_SOUND = {
    "spec": Array((4800,), 1),
    "tokens": TokenConfig(positions=fourier(64, 4800)),
}
PIXELS = TokenConfig(positions=fourier(64, 224, 224))
CONVOLVED = TokenConfig(content="conv", dim=64, positions=fourier(64, 56, 56))
JFT: Mapping[str, Any] = {"num_blocks": 1, "depth": 16, "share_blocks": False, "mlp_ratio": 4}

VARIANTS: dict[str, Mapping[str, Any]] = {
    "perceiver_io_language": language(1280, 26),
    "perceiver_io_language_plus": language(1536, 40),
    "perceiver_io_imagenet_learned": imagenet(
        TokenConfig(dim=256, positions=PositionConfig(kind="learned", dim=256, project=256)),
        residual=False,
    ),
    "perceiver_io_imagenet_fourier": imagenet(PIXELS, residual=True),
    "perceiver_io_imagenet_conv": imagenet(CONVOLVED, residual=True),
    "perceiver_io_jft_fourier": imagenet(
        TokenConfig(dim=256, positions=fourier(64, 224, 224)), residual=True, **JFT
    ),
    "perceiver_io_jft_conv": imagenet(CONVOLVED, residual=True, **JFT),
    "perceiver_io_flow": flow(latents=2048, depth=24, bands=64),
    "perceiver_io_flow_small": flow(latents=1024, depth=16, bands=64),
    "perceiver_io_multimodal": kinetics(784),
    "perceiver_io_multimodal_176x": kinetics(392),
    "perceiver_io_multimodal_352x": kinetics(196),
    "perceiver_io_audioset_raw": audioset(RAW_SOUND, 512),
    "perceiver_io_audioset_mel": audioset(MEL_SOUND, 1024),
    "perceiver_io_nano": {
        "trunk": TrunkConfig(num_latents=32, latent_dim=64, depth=2, num_heads=4, mlp_ratio=2)
    },
    "perceiver_io_tiny": {
        "trunk": TrunkConfig(num_latents=64, latent_dim=192, depth=4, num_heads=6, mlp_ratio=2)
    },
    # With several heads, a latent attends to several parts of a text at once. Fourier features
    # distinguish positions from the first step, and queries include the (masked) input byte.
    "perceiver_io_text_tiny": {
        "tokens": {
            "bytes": TokenConfig(content="embedding", dim=64, positions=fourier(32)),
        },
        "trunk": TrunkConfig(
            num_latents=64,
            latent_dim=192,
            depth=4,
            num_heads=6,
            num_cross_heads=8,
            qk_dim=192,
            v_dim=192,
            mlp_ratio=2,
        ),
        "outputs": {"bytes": Output(queries="tokens", modality="bytes", channels=BYTE_VOCABULARY)},
        "decoder": DecoderConfig(num_heads=8, qk_dim=192, v_dim=192, mlp_ratio=4),
    },
    "perceiver_io_flow_tiny": {
        "inputs": {"video": Video(2, 48, 64, 3, mean=(0.5,) * 3, std=(0.5,) * 3)},
        # The cheaper input of the paper: a convolutional stem that reduces both frames to a quarter
        # of their size. Motion shows as small differences between large values, which short
        # training does not pick up next to local brightness; subtracting the local mean exposes it
        # (docs/log.md).
        "tokens": {
            "video": TokenConfig(content="conv", dim=64, contrast=9, positions=fourier(8, 12, 16))
        },
        "trunk": TrunkConfig(
            num_latents=64,
            latent_dim=128,
            depth=2,
            num_heads=8,
            num_cross_heads=8,
            qk_dim=128,
            v_dim=128,
            mlp_ratio=4,
        ),
        # The paper has no residual connection from the query and divides the output by 100. That
        # works with long training; short training needs the residual and outputs of order one.
        "outputs": {
            "flow": Output(
                queries="tokens", modality="video", patch=(4, 4), channels=2, divide_by=5.0
            )
        },
        "decoder": DecoderConfig(num_heads=8, qk_dim=128, v_dim=128, residual=True, mlp_ratio=4),
    },
}


# -- Full configuration from a variant, inputs and outputs ---------------------------------------
#
# Paper: Perceiver IO (arXiv 2107.14795) Fig. 3: queries for each kind of task.

# Name of the output for segmentation, and candidate sides of its patches, largest first.
SEGMENTS = "segments"
SEGMENT_PATCHES = (4, 2, 1)


def example(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords of ``create_model`` for inputs that a variant is typically used with."""
    texts = "bytes" in settings.get("tokens", {})
    other = {"bytes": Bytes(512)} if texts else {"image": Image(224, 224, 3)}
    return {"inputs": settings.get("inputs") or other}


def configure(
    settings: Mapping[str, Any],
    *,
    inputs: Mapping[str, ModalitySpec] | None,
    num_classes: int | Mapping[str, int] | None,
    head: str,
    overrides: Mapping[str, Any],
) -> PerceiverIOConfig:
    """Return the full configuration of a variant.

    Args:
        settings: Settings of the variant.
        inputs: Modalities by name; those of the variant by default.
        num_classes: Number of classes, for a classifier with one learned query; or a mapping of
            task name -> number of classes, for one query per task with a two-layer head as in the
            paper. By default the outputs are those of the variant, or a reconstruction of every
            modality if it has none.
        head: Must be ``query``.
        overrides: Fields of ``PerceiverIOConfig``; ``trunk`` and ``decoder`` may be mappings of
            single fields.

    Raises:
        ConfigError: There are no inputs, the head is another one, or settings contradict one
            another.
    """
    inputs = inputs or settings.get("inputs")
    if inputs is None:
        raise ConfigError("this variant has no inputs; describe them with inputs={name: spec}")
    if head != "query":
        raise ConfigError(
            f"head={head!r}: Perceiver IO has the head 'query'; only Perceiver models have 'mean'"
        )
    values: dict[str, Any] = {**settings, **overrides, "inputs": inputs}
    for name, kind in (("trunk", TrunkConfig), ("decoder", DecoderConfig)):
        asked = overrides.get(name)
        if isinstance(asked, Mapping):
            own = settings.get(name)
            values[name] = change_fields(own, asked) if own else build_nested(kind, asked)
    values["tokens"] = choose_tokens(inputs, settings, overrides)
    if "outputs" in overrides:
        if num_classes is not None:
            raise ConfigError("num_classes and outputs both describe the output; give one of them")
        table = overrides["outputs"].items()
        values["outputs"] = {key: build_nested(Output, entry) for key, entry in table}
    else:
        values["outputs"] = _outputs(values, settings, num_classes)
        if isinstance(num_classes, Mapping):
            # All queries have the same width and need no padding.
            decoder = values.get("decoder", DecoderConfig())
            values["decoder"] = change(decoder, (), min_padding=0, project=0)
    return settle(PerceiverIOConfig, values, named(overrides))


def as_classifier(
    config: PerceiverIOConfig, num_classes: int | Mapping[str, int], head: str
) -> PerceiverIOConfig:
    """Return the config of a classifier with the same inputs and latents.

    Raises:
        ConfigError: The head is not ``query``.
    """
    settings = {"trunk": config.trunk, "tokens": config.tokens, "init": config.init}
    settings |= {"min_padding": config.min_padding, "mask_tokens": config.mask_tokens}
    return configure(
        settings, inputs=config.inputs, num_classes=num_classes, head=head, overrides={}
    )


def as_segmenter(
    config: PerceiverIOConfig, num_classes: int, modality: str, head: str
) -> PerceiverIOConfig:
    """Return the config of a Perceiver IO that predicts a class for every element of a modality.

    There is one query per patch, whose side is the first of ``SEGMENT_PATCHES`` that divides the
    grid; for points there is one query per point.

    Args:
        config: Config of the source model, whose inputs and latents are kept.
        num_classes: Number of classes.
        modality: Modality to segment.
        head: ``family`` or ``queries``.

    Raises:
        ConfigError: Another head, or a modality that is not an input.
    """
    if head not in {"family", "queries"} or modality not in config.inputs:
        raise ConfigError(
            f"head={head!r} for {modality!r}: Perceiver IO segments one of {list(config.inputs)}, "
            f"with head='queries'"
        )
    spec, tokens = config.inputs[modality], config.tokens[modality]
    if isinstance(spec, Points):
        # Points have no fixed position: their coordinates are the input, so tokens are queries.
        output = Output(queries="tokens", modality=modality, channels=num_classes)
        return change(config, given=(), outputs={SEGMENTS: output})
    side = next(n for n in SEGMENT_PATCHES if all(size % n == 0 for size in spec.grid))
    output = Output(
        queries="positions",
        modality=modality,
        positions=PositionConfig(kind="fourier", num_bands=tokens.positions.num_bands),
        patch=(side,) * len(spec.grid),
        channels=num_classes,
    )
    return change(config, given=(), outputs={SEGMENTS: output})


def _outputs(
    values: Mapping[str, Any],
    settings: Mapping[str, Any],
    num_classes: int | Mapping[str, int] | None,
) -> dict[str, Output]:
    dim = values["trunk"].latent_dim
    if isinstance(num_classes, Mapping):
        return {
            name: Output(dim=dim, channels=count, head="tanh_mlp")
            for name, count in num_classes.items()
        }
    if num_classes is not None:
        return {"classes": Output(dim=dim, channels=num_classes)}
    own, inputs = settings.get("outputs"), values["inputs"]
    if own and all(not output.modality or output.modality in inputs for output in own.values()):
        return {
            name: change(output, (), length=inputs[output.modality].num_tokens)
            if output.queries == "learned" and output.modality
            else output
            for name, output in own.items()
        }
    return {
        name: reconstruction(name, spec, values["tokens"][name], dim)
        for name, spec in inputs.items()
    }


def reconstruction(name: str, spec: ModalitySpec, tokens: TokenConfig, dim: int) -> Output:
    """Return the output that reconstructs a modality, element by element.

    Queries have positions of the same kind as the tokens. Audio is reconstructed in patches, as in
    the paper.
    """
    if spec.kind == "bytes":
        # With a separate linear layer, initial predictions are close to uniform; with a tied
        # embedding of standard deviation 1 they are not.
        return Output(length=spec.num_tokens, dim=tokens.dim, modality=name, channels=spec.channels)
    if isinstance(spec, Labels):
        return Output(length=spec.length, dim=dim, channels=spec.num_classes)
    if isinstance(spec, Points):
        positions = PositionConfig(kind="learned", dim=dim)
    elif tokens.content == "elements" and not tokens.stride:
        positions = change(tokens.positions, (), combine="concat")
        if positions.kind == "none":
            positions = PositionConfig(kind="learned", dim=dim)
    else:
        positions = PositionConfig(kind="fourier", num_bands=tokens.positions.num_bands)
    patch = tokens.patch if spec.kind == "audio" else ()
    return Output(
        queries="positions", modality=name, positions=positions, patch=patch, channels=spec.channels
    )
