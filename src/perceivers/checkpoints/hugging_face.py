"""Reading and writing Hugging Face folders of the seven Perceiver classes.

transformers is not imported: a folder is ``config.json`` and ``model.safetensors`` (or
``pytorch_model.bin``, read without executing code). ``hugging_face_config`` translates configs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from perceivers.checkpoints.hugging_face_config import (
    CLASSES,
    class_of,
    config_from_hugging_face,
    config_to_hugging_face,
)
from perceivers.checkpoints.names import (
    Entry,
    Flavour,
    Part,
    Scheme,
    describe_differences,
    expand,
    fill_model,
    fused_rows,
    kind_of,
    modality_role,
    take_from_model,
    with_flavour,
)
from perceivers.checkpoints.torch_files import read_folder_tensors
from perceivers.errors import CheckpointError, suggest
from perceivers.files import read_json_file, write_atomic, write_json
from perceivers.models import PerceiverIO, PerceiverIOConfig
from perceivers.models.saving import ModelInfo

# -- Tensor names in Hugging Face's seven Perceiver classes --------------------------------------

ATTENTION = {"attention.out": ".attention.output.dense"}
MLP = {"norm_mlp": ".layernorm", "mlp.hidden": ".mlp.dense1", "mlp.out": ".mlp.dense2"}
SCHEME = Scheme(
    parameter=".",
    linear=("weight", "bias"),
    norm=("weight", "bias"),
    weight="same",
    pixel="pixel",
    kernel="same",
    vector="same",
    averages=(".running_mean", ".running_var"),
    read={
        "norm_query": ".attention.self.layernorm1",
        "norm_tokens": ".attention.self.layernorm2",
        "attention.q": ".attention.self.query",
        "attention.k": ".attention.self.key",
        "attention.v": ".attention.self.value",
        **ATTENTION,
        **MLP,
    },
    layer={
        "norm_attention": ".attention.self.layernorm1",
        "attention.qkv#0": ".attention.self.query",
        "attention.qkv#1": ".attention.self.key",
        "attention.qkv#2": ".attention.self.value",
        **ATTENTION,
        **MLP,
    },
    index=str,
)
READER = "perceiver.input_preprocessor"
TABLE = "position_embeddings.position_embeddings"
QUERIES = "output_position_encodings.position_embeddings"
COUNTER = f"{READER}.convnet.batchnorm.num_batches_tracked"


def hugging_face_entries(config: PerceiverIOConfig) -> list[Entry]:
    """Return the name table of a configuration, one entry per tensor.

    Raises:
        CheckpointError: No model of this kind was released.
    """
    kind = kind_of(config)
    decoder = "perceiver.decoder" + ("" if kind == "language" else ".decoder")
    parts = [
        Part("array", "trunk.latents", "perceiver.embeddings.latents"),
        Part("read", "trunk.reads.0", "perceiver.encoder.cross_attention"),
        Part("layers", "trunk.blocks.0", "perceiver.encoder.self_attends.{}"),
        Part("read", "decoder.read", f"{decoder}.decoding_cross_attention"),
    ]
    fused = fused_rows(config.trunk)
    if kind == "multimodal":
        return expand(parts + _multimodal(config), SCHEME, config.trunk.depth, fused)
    (name,), (out,) = config.inputs, config.outputs
    reader = f"inputs.readers.{name}"
    if kind in {"language", "text_classes"}:
        parts += [
            Part("array", f"{reader}.content.rows.weight", f"{READER}.embeddings.weight"),
            Part(
                "array",
                f"{reader}.positions.source.table",
                f"{READER}.position_embeddings.weight",
            ),
        ]
    elif kind == "flow":
        parts.append(Part("linear", f"{reader}.linear", f"{READER}.conv_after_patches"))
    else:
        parts += _pixels(config, reader)
    if kind != "flow":
        parts.append(Part("array", f"decoder.queries.{out}.table", f"{decoder}.{QUERIES}"))
    if kind == "language":
        parts.append(Part("array", f"decoder.heads.{out}.bias", "embedding_decoder.bias"))
    else:
        parts.append(Part("linear", f"decoder.heads.{out}", f"{decoder}.final_layer"))
    return expand(parts, SCHEME, config.trunk.depth, fused)


def _pixels(config: PerceiverIOConfig, reader: str) -> list[Part]:
    (tokens,) = config.tokens.values()
    if tokens.content == "conv":
        norm = f"{reader}.content.norms.0"
        return [
            Part("conv", f"{reader}.content.convs.0", f"{READER}.convnet.conv"),
            Part("batch_norm", norm, f"{READER}.convnet.batchnorm"),
            Part("array", f"{norm}.num_batches_tracked", COUNTER),
        ]
    if tokens.positions.kind == "learned":
        places = f"{reader}.positions"
        return [
            Part("pixel", f"{reader}.linear", f"{READER}.convnet_1x1"),
            Part("array", f"{places}.source.table", f"{READER}.{TABLE}"),
            Part("linear", f"{places}.project", f"{READER}.positions_projection"),
        ]
    return []


def _multimodal(config: PerceiverIOConfig) -> list[Part]:
    parts = [Part("linear", "decoder.project", "perceiver.decoder.decoder.final_layer")]
    for name, spec in config.inputs.items():
        role = modality_role(spec)
        head = f"perceiver.output_postprocessor.modalities.{role}.classifier"
        parts += [
            Part("row", f"inputs.padding.{name}", f"{READER}.padding.{role}"),
            Part("row", f"inputs.mask.{name}", f"{READER}.mask.{role}"),
            Part("row", f"decoder.padding.{name}", f"perceiver.decoder.padding.{role}"),
            Part("linear", f"decoder.heads.{name}", head),
        ]
        if role == "label":
            theirs = f"perceiver.decoder.modalities.label.decoder.{QUERIES}"
            parts.append(Part("array", f"decoder.queries.{name}.table", theirs))
    return parts


# -- Reading folders -----------------------------------------------------------------------------

# Entries that are no parameters; some versions of transformers write them.
TOLERATED = (".position_ids", ".attention_mask_value", COUNTER)

# Tensors that identify a class if config.json does not name it. Order matters: the last two also
# occur in earlier classes.
TELLING = {
    "embedding_decoder.bias": "PerceiverForMaskedLM",
    f"{READER}.convnet.conv.weight": "PerceiverForImageClassificationConvProcessing",
    f"{READER}.convnet_1x1.weight": "PerceiverForImageClassificationLearned",
    f"{READER}.conv_after_patches.weight": "PerceiverForOpticalFlow",
    f"{READER}.padding.audio": "PerceiverForMultimodalAutoencoding",
    f"{READER}.embeddings.weight": "PerceiverForSequenceClassification",
    f"perceiver.decoder.decoder.{QUERIES}": "PerceiverForImageClassificationFourier",
}


@dataclass(frozen=True)
class HuggingFaceFolder:
    """Contents of a Hugging Face folder: class name, JSON files and weights."""

    path: Path
    name: str
    stated: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; empty if ``config.json`` has none."""
        labels = self.stated.get("id2label")
        if not isinstance(labels, Mapping):
            return ()
        return tuple(str(labels.get(str(i), labels.get(i, ""))) for i in range(len(labels)))


def read_hugging_face(folder: Path) -> HuggingFaceFolder:
    """Read a folder whose ``model_type`` is ``perceiver``.

    Raises:
        CheckpointError: A file is missing or damaged, or the class is not one of the seven.
    """
    stated = read_json_file(folder / "config.json")
    if stated.get("model_type", "perceiver") != "perceiver":
        raise CheckpointError(
            f"{folder}: model_type is {stated['model_type']!r}; only 'perceiver' is converted"
        )
    tensors = read_folder_tensors(folder)
    named = stated.get("architectures") or []
    name = str(named[0]) if named else _tell_class(tensors, str(folder))
    if name not in CLASSES:
        raise CheckpointError(
            f"{folder}: class {name!r} is unknown; expected one of {list(CLASSES)}"
            + suggest(name, CLASSES)
        )
    preprocessor = folder / "preprocessor_config.json"
    return HuggingFaceFolder(
        path=folder,
        name=name,
        stated=stated,
        preprocessor=read_json_file(preprocessor) if preprocessor.is_file() else {},
        tensors=tensors,
    )


def _tell_class(tensors: Mapping[str, Tensor], source: str) -> str:
    for key, name in TELLING.items():
        if key in tensors:
            return name
    raise CheckpointError(
        f"{source}: config.json names no class under 'architectures', and the tensor names do not "
        f"identify one"
    )


def model_from_hugging_face(read: HuggingFaceFolder, flavour: Flavour = "hf") -> PerceiverIO:
    """Build our model in evaluation mode and load the weights; all names and shapes must match.

    Args:
        read: Contents of the folder.
        flavour: ``hf`` computes the outputs of transformers, ``official`` those of the released
            code with the same weights.

    Raises:
        CheckpointError: Tensors are missing, unexpected or have another shape (all listed).
    """
    config = config_from_hugging_face(read.name, read.stated, read.preprocessor, str(read.path))
    if flavour == "official":
        config = with_flavour(config, flavour)
    entries = hugging_face_entries(config)
    wanted = {entry.theirs for entry in entries}
    found = {k: x for k, x in read.tensors.items() if k in wanted or not k.endswith(TOLERATED)}
    if COUNTER in wanted:  # does not affect outputs, so files without it are accepted
        found.setdefault(COUNTER, torch.zeros((), dtype=torch.int64))
    model = PerceiverIO(config)
    fill_model(model, entries, found, source=str(read.path))
    return model.eval()


# -- Writing folders -----------------------------------------------------------------------------


def save_hugging_face(model: PerceiverIO, folder: Path, info: ModelInfo) -> list[str]:
    """Write a folder that a Hugging Face class can load.

    Returns:
        Notes on what that class computes differently.

    Raises:
        CheckpointError: No Hugging Face class supports this model; lists the unsupported settings.
    """
    kind = kind_of(model.config)
    name = class_of(model.config, kind)
    stated = config_to_hugging_face(model.config, kind)
    channels = list(model.config.outputs.values())[-1].channels
    if kind in {"text_classes", "image_classes", "multimodal"}:
        labels = info.classes or tuple(f"LABEL_{i}" for i in range(channels))
        stated["id2label"] = {str(i): label for i, label in enumerate(labels)}
        stated["label2id"] = {label: i for i, label in enumerate(labels)}
    preprocessor = _preprocessor(model.config) if kind == "image_classes" else {}
    # Translated back and compared, so that no setting is lost silently.
    again = config_from_hugging_face(name, stated, preprocessor, "the written config.json")
    notes = describe_differences(model.config, again, name)
    tensors = take_from_model(model, hugging_face_entries(model.config))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    if preprocessor:
        write_json(folder / "preprocessor_config.json", preprocessor)
    if kind in {"language", "text_classes"}:
        length = stated["max_position_embeddings"]
        tokenizer = {"tokenizer_class": "PerceiverTokenizer", "model_max_length": length}
        write_json(folder / "tokenizer_config.json", tokenizer)
    write_json(
        folder / "config.json",
        {"architectures": [name], "model_type": "perceiver", "dtype": "float32", **stated},
    )
    return notes


def _preprocessor(config: PerceiverIOConfig) -> dict[str, Any]:
    (spec,) = config.inputs.values()
    height, width = spec.grid
    # PerceiverImageProcessor crops before it resizes, to size / crop_size of the shorter side; the
    # released fraction is 224/256.
    crop = {"height": height * 256 // 224, "width": width * 256 // 224}
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "do_center_crop": True,
        "crop_size": crop,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean or (0.0,) * spec.channels),
        "image_std": list(spec.std or (1.0,) * spec.channels),
    }
