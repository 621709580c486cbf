"""Make the Hiera bundles: the official code and timm's, run on tiny models of random weights.

Needs hiera-transformer 0.1.4, timm 1.0.31 and a torchvision that fits torch; run once, by hand, in
an environment that has them:

    python -m tests.golden.make_hiera tests/golden

Weights are rounded to half precision, to be small; everything is computed in float64.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"embed_dim": 4, "num_heads": 2, "stages": (1, 2, 1, 1), "mlp_ratio": 2.0}
DECODER = {"decoder_embed_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2}
CLIP = {
    "q_stride": (1, 2, 2),
    "mask_unit_size": (1, 8, 8),
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "sep_pos_embed": True,
}
WINDOW = {"abs_win_pos_embed": True, "init_values": 0.5}
# Name: library, class, size, further arguments.
BUNDLES: Mapping[str, tuple[str, str, tuple[int, ...], Mapping[str, Any]]] = {
    "official_image": ("official", "Hiera", (64, 96), {"num_classes": 5}),
    "official_mae": ("official", "MaskedAutoencoderHiera", (64, 64), {**DECODER, "q_pool": 2}),
    "official_video": ("official", "Hiera", (4, 64, 64), {**CLIP, "num_classes": 5}),
    "official_video_mae": (
        "official",
        "MaskedAutoencoderHiera",
        (4, 32, 64),
        {**CLIP, **DECODER, "q_pool": 2},
    ),
    "timm_image": ("timm", "Hiera", (64, 96), {"num_classes": 5}),
    "timm_window": (
        "timm",
        "Hiera",
        (64, 64),
        {**WINDOW, "global_pos_size": (5, 5), "num_classes": 0},
    ),
    "timm_window_pool": (
        "timm",
        "Hiera",
        (64, 64),
        {**WINDOW, "global_pos_size": (20, 20), "use_expand_proj": False, "num_classes": 5},
    ),
}


def build(library: str, kind: str, size: tuple[int, ...], more: Mapping[str, Any]) -> Any:
    """Build a class of either library, every tensor of which matters."""
    if library == "official":
        import hiera  # pyright: ignore[reportMissingImports]

        model = getattr(hiera, kind)(**{**SMALL, **more, "input_size": size})
        if kind == "Hiera":
            model.head.act_func = nn.Identity()
    else:
        from timm.models import hiera as models  # pyright: ignore[reportMissingImports]

        model = models.Hiera(**{**SMALL, **more, "img_size": size})
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape) * 0.3
            # Scales stay near 1, and differ from the initial value everywhere.
            base = parameter if parameter.ndim == 1 else torch.zeros_like(parameter)
            parameter.copy_((base + noise).half())
    return model.double().train(False)


def answer(model: Any, x: Tensor, library: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the outputs by our names, and which mask units an autoencoder was shown."""
    if hasattr(model, "decoder_pred"):
        units = int(np.prod(model.mask_spatial_shape))
        keep = torch.zeros(len(x), units, dtype=torch.bool)
        for row in keep:
            row[torch.randperm(units)[: units // 2]] = True
        loss, predicted, _, _ = model(x, mask=keep)
        return {"loss": loss, "prediction": predicted}, keep
    if library == "official":
        last, stages = model(x, return_intermediates=True)
    else:
        tokens, stages = model.forward_features(x, return_intermediates=True)
        last = model.forward_head(tokens)
    outputs = {f"stage{i}": stage.movedim(-1, 1) for i, stage in enumerate(stages, 1)}
    headless = library == "timm" and not isinstance(model.head.fc, nn.Linear)
    return {**outputs, "pooled" if headless else "logits": last}, None


def stated(size: tuple[int, ...], more: Mapping[str, Any]) -> dict[str, Any]:
    """What the shapes of the tensors do not tell."""
    names = ("height", "width") if len(size) == 2 else ("frames", "height", "width")
    kind = "image" if len(size) == 2 else "video"
    spec = {"type": kind, **dict(zip(names, size, strict=True)), "channels": 3}
    config: dict[str, Any] = {"num_heads": SMALL["num_heads"]}
    config["inputs"] = {kind: {**spec, "mean": MEAN, "std": STD}}
    if "decoder_num_heads" in more:
        config["decoder"] = {"num_heads": more["decoder_num_heads"]}
    return config


def make(name: str, folder: Path) -> None:
    """Write one bundle."""
    library, kind, size, more = BUNDLES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = build(library, kind, size, more)
    # Such steps are exact in half precision.
    batch = 2 if name == "timm_window" else 1
    raw = torch.randint(0, 256, (batch, 3, *size)) / 256
    mean, std = (
        torch.tensor(values).double().reshape(1, 3, *[1] * len(size)) for values in (MEAN, STD)
    )
    with torch.no_grad():
        outputs, keep = answer(model, (raw.double() - mean) / std, library)
    packages = {"official": "hiera-transformer 0.1.4", "timm": "timm 1.0.31"}
    config = {
        "kind": "hiera",
        "library": library,
        "made_with": packages[library],
        "config": stated(size, more),
        "is_training": False,
        "output_absmax": max(float(x.abs().max()) for x in outputs.values()),
    }
    arrays: dict[str, Any] = {"config_json": np.array(json.dumps(config))}
    arrays["input/raw"] = raw.half().numpy()
    if keep is not None:
        arrays["input/keep"] = keep.numpy()
    arrays |= {f"param/{key}": x.half().numpy() for key, x in model.state_dict().items()}
    arrays |= {f"output/{key}": x.numpy() for key, x in outputs.items()}
    np.savez_compressed(folder / f"hiera_{name}.npz", **arrays)


if __name__ == "__main__":
    for bundle in BUNDLES:
        make(bundle, Path(sys.argv[1]))
