"""The names of tensors in Hugging Face's seven Perceiver classes, in our terms."""

from perceivers.checkpoints.kinds import kind_of, modality_role
from perceivers.checkpoints.names import Entry, Part, Scheme, expand
from perceivers.models import PerceiverIOConfig

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
    """Return the table of names for a configuration.

    Raises:
        CheckpointError: The configuration is of no released kind.
    """
    kind = kind_of(config)
    decoder = "perceiver.decoder" + ("" if kind == "language" else ".decoder")
    parts = [
        Part("array", "trunk.latents", "perceiver.embeddings.latents"),
        Part("read", "trunk.reads.0", "perceiver.encoder.cross_attention"),
        Part("layers", "trunk.blocks.0", "perceiver.encoder.self_attends.{}"),
        Part("read", "decoder.read", f"{decoder}.decoding_cross_attention"),
    ]
    if kind == "multimodal":
        return expand(parts + _multimodal(config), SCHEME, config.trunk)
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
    return expand(parts, SCHEME, config.trunk)


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
