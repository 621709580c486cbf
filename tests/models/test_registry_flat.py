"""Creating the flat systems by name: inputs, classes, heads, overrides, and every refusal."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.adapters.config import PositionConfig, TokenConfig
from perceivers.errors import ConfigError
from perceivers.models import (
    DecoderConfig,
    EntitySet,
    Output,
    Perceiver,
    PerceiverIO,
    create_model,
    list_models,
)
from perceivers.types import Array, Audio, Bytes, Image, Labels, ModalitySpec, Points, Video

IMAGE: Mapping[str, ModalitySpec] = {"image": Image(8, 8)}
MANY: Mapping[str, ModalitySpec] = {
    "image": Image(4, 6, 2),
    "video": Video(2, 8, 4, 1),
    "sound": Audio(32, 2),
    "cloud": Points(7, 3, ragged=True),
    "table": Array((3, 4), 2),
    "label": Labels(5),
    "tags": Labels(4, 3),
    "text": Bytes(9),
}
SHAPES = {
    "image": (2, 2, 4, 6),
    "video": (2, 1, 2, 8, 4),
    "sound": (2, 2, 32),
    "cloud": (2, 7, 3),
    "table": (2, 3, 4, 2),
    "label": (2, 5),
    "tags": (2, 3, 4),
    "text": (2, 9, 262),
}


def draw(rng: torch.Generator, specs: Mapping[str, ModalitySpec]) -> dict[str, Tensor]:
    raw = {}
    for name, spec in specs.items():
        shape = (2, *spec.raw_shape)
        if spec.kind in {"labels", "bytes"}:
            raw[name] = torch.randint(1, spec.channels, shape, generator=rng)
        else:
            raw[name] = torch.randn(shape, generator=rng)
    return raw


def test_all_four_families_have_names() -> None:
    assert list_models("entity_set_*") == ["entity_set_starcraft", "entity_set_nano"]
    assert {"perceiver_imagenet", "perceiver_nano"} <= set(list_models("perceiver_*"))
    assert {"perceiver_io_language", "perceiver_io_flow"} <= set(list_models("perceiver_io_*"))


@pytest.mark.parametrize("name", ["perceiver_nano", "perceiver_tiny"])
def test_a_perceiver_classifies_any_modalities(name: str, rng: torch.Generator) -> None:
    model = create_model(name, inputs=MANY, num_classes=4).eval()
    assert type(model) is Perceiver
    raw = draw(rng, MANY)
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight)
    logits = model(raw)
    assert logits.shape == (2, 4)
    for missing in MANY:
        some = {n: x for n, x in raw.items() if n != missing}
        assert not torch.allclose(model(some), logits), missing


def test_a_perceiver_io_gives_every_modality_back(rng: torch.Generator) -> None:
    model = create_model("perceiver_io_nano", inputs=MANY).eval()
    assert type(model) is PerceiverIO
    raw = draw(rng, MANY)
    answers = model(raw)
    assert {name: tuple(x.shape) for name, x in answers.items()} == SHAPES
    changed = model({**raw, "text": raw["text"].flip(0)})
    assert not torch.allclose(changed["image"], answers["image"])


def test_tokens_without_places_are_asked_for_by_learned_queries(rng: torch.Generator) -> None:
    bare = {"image": TokenConfig()}
    model = create_model("perceiver_io_nano", inputs=IMAGE, tokens=bare)
    assert model.config.outputs["image"].positions.kind == "learned"
    added = PositionConfig(kind="learned", dim=3, combine="add")
    model = create_model("perceiver_io_nano", inputs=IMAGE, tokens={"image": {"positions": added}})
    assert model.config.outputs["image"].positions == PositionConfig(kind="learned", dim=3)
    assert model(draw(rng, IMAGE)).shape == (2, 3, 8, 8)


def test_num_classes_makes_one_query_or_one_per_task(rng: torch.Generator) -> None:
    one = create_model("perceiver_io_nano", inputs=IMAGE, num_classes=4)
    assert list(one.config.outputs) == ["classes"]
    assert one.config.num_classes == 4
    assert one(draw(rng, IMAGE)).shape == (2, 4)
    two = create_model("perceiver_io_nano", inputs=IMAGE, num_classes={"colour": 4, "size": 2})
    answers = two(draw(rng, IMAGE))
    assert {name: tuple(x.shape) for name, x in answers.items()} == {
        "colour": (2, 4),
        "size": (2, 2),
    }
    assert {output.head for output in two.config.outputs.values()} == {"tanh_mlp"}
    assert not len(two.decoder.padding)  # queries of one width
    assert create_model("perceiver_nano", inputs=IMAGE, num_classes=4).config.num_outputs == 4
    assert create_model("perceiver_nano", inputs=IMAGE, num_outputs=4).config.num_outputs == 4


def test_released_variants_keep_their_inputs_and_outputs_unless_told() -> None:
    with torch.device("meta"):
        language = create_model("perceiver_io_language")
        shorter = create_model("perceiver_io_language", inputs={"bytes": Bytes(512)})
        other = create_model("perceiver_io_language", inputs=IMAGE)
        classes = create_model("perceiver_io_multimodal", num_classes=7)
    assert language.config.inputs == {"bytes": Bytes(2048)}
    assert shorter.num_queries("bytes") == 512
    assert list(other.config.outputs) == ["image"]
    assert list(classes.config.outputs) == ["classes"]
    assert classes.config.tokens["label"].mask_rate == 1.0


def test_overrides_change_single_fields() -> None:
    made = create_model("perceiver_io_nano", inputs=IMAGE, trunk={"depth": 1}, decoder={"chunk": 9})
    assert (made.config.trunk.depth, made.config.trunk.latent_dim) == (1, 64)
    assert made.config.decoder == DecoderConfig(chunk=9)
    with torch.device("meta"):
        flow = create_model("perceiver_io_imagenet_conv", decoder={"chunk": 9})
    assert flow.config.decoder == DecoderConfig(residual=True, chunk=9)
    units = {"units": Points(5, 3)}
    chosen = create_model("entity_set_nano", inputs=units, decoder={"num_heads": 1}, embed_dim=8)
    assert chosen.config.decoder == DecoderConfig(num_heads=1, residual=True)
    outputs = {"again": {"dim": 6, "channels": 2}}
    asked = create_model("perceiver_io_nano", inputs=IMAGE, outputs=outputs)
    assert asked.config.outputs == {"again": Output(dim=6, channels=2)}
    tokens = {"image": {"stride": [2, 2], "positions": {"kind": "learned", "dim": 5}}}
    read = create_model("perceiver_nano", inputs=IMAGE, num_classes=2, tokens=tokens)
    assert read.inputs.num_tokens == {"image": 16}


def test_an_entity_set_scores_its_slots(rng: torch.Generator) -> None:
    units: Mapping[str, ModalitySpec] = {"units": Points(5, 3)}
    model = create_model("entity_set_nano", inputs=units, num_classes=5)
    assert type(model) is EntitySet
    assert model(draw(rng, units)).shape == (2, 5)


CALLS: list[tuple[str, dict[str, Any], str]] = [
    (
        "perceiver_nano",
        {"num_classes": 3},
        r"this variant has no inputs; describe them with inputs=",
    ),
    ("perceiver_io_nano", {}, r"this variant has no inputs; describe them with inputs="),
    ("entity_set_nano", {}, r"this variant reads any set; describe it with inputs="),
    ("perceiver_nano", {"inputs": IMAGE}, r"returns one array of logits; .*not None"),
    (
        "perceiver_nano",
        {"inputs": IMAGE, "num_classes": {"a": 2}},
        r"returns one array of logits; give num_classes as one number, not \{'a': 2\}",
    ),
    (
        "perceiver_nano",
        {"inputs": IMAGE, "num_classes": 3, "head": "label"},
        r"head='label': a Perceiver has only the head 'mean'",
    ),
    (
        "perceiver_nano",
        {"inputs": IMAGE, "num_classes": 3, "num_outputs": 4},
        r"num_classes and num_outputs are the same thing; give one of them",
    ),
    (
        "perceiver_io_nano",
        {"inputs": IMAGE, "num_classes": 3, "head": "mean"},
        r"head='mean': Perceiver IO has the head 'query'; only Perceiver models have 'mean'",
    ),
    (
        "perceiver_io_nano",
        {"inputs": IMAGE, "num_classes": 3, "outputs": {"x": Output(dim=3)}},
        r"num_classes and outputs both describe the output; give one of them",
    ),
    (
        "entity_set_nano",
        {"inputs": {"units": Points(5, 3)}, "num_classes": 4},
        r"4 classes, but .*one of its 5 entities, .*row of an entity, 0 to 4; give data with 5 su",
    ),
    (
        "entity_set_nano",
        {"inputs": {"units": Points(5, 3)}, "num_classes": {"a": 5}},
        r"tasks \{'a': 5\}, but the pointer of an entity set chooses one of its 5 entities",
    ),
    (
        "entity_set_nano",
        {"inputs": {"units": Points(5, 3)}, "num_classes": 5, "head": "mean"},
        r"head='mean': an entity set has only its pointer; leave head out",
    ),
    (
        "entity_set_nano",
        {"inputs": IMAGE, "num_classes": 10},
        r"exactly one modality of points, not \['image'\]: .*use a variant of perceiver_io",
    ),
    ("entity_set_nano", {"inputs": {}}, r"describe it with inputs=\{name: Points"),
    (
        "perceiver_io_nano",
        {"inputs": IMAGE, "trunk": {"dept": 2}},
        r"TrunkConfig has no setting 'dept'.*did you mean 'depth'\?",
    ),
    (
        "perceiver_nano",
        {"inputs": IMAGE, "num_classes": 2, "trunk": {"dept": 2}},
        r"TrunkConfig has no setting 'dept'.*did you mean 'depth'\?",
    ),
    (
        "entity_set_nano",
        {"inputs": {"units": Points(5, 3)}, "decoder": {"heads": 2}},
        r"DecoderConfig has no setting 'heads'.*did you mean",
    ),
    (
        "perceiver_nano",
        {"inputs": IMAGE, "num_classes": 2, "tokens": {"imge": TokenConfig()}},
        r"tokens are described for \['imge'\], .*did you mean 'image'\?",
    ),
    (
        "perceiver_io_nano",
        {"inputs": IMAGE, "tokens": {"imge": TokenConfig()}},
        r"tokens are described for \['imge'\], .*did you mean 'image'\?",
    ),
    (
        "perceiver_io_nano",
        {"inputs": IMAGE, "output": {}},
        r"perceiver_io_nano has no setting 'output'; .*did you mean 'outputs'\?",
    ),
    (
        "perceiver_ionano",
        {"inputs": IMAGE},
        r"model 'perceiver_ionano' is unknown; .*did you mean 'perceiver_io_nano'\?",
    ),
]


@pytest.mark.parametrize(("name", "settings", "text"), CALLS)
def test_what_cannot_be_built_is_refused(name: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        create_model(name, **settings)
