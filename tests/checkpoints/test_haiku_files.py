"""DeepMind's parameter files: bare parameters or with state, told by their names, or described."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import perceivers as pv
from perceivers.checkpoints import haiku_perceiver
from perceivers.checkpoints.haiku_perceiver import (
    RELEASES,
    find_release,
    haiku_entries,
    params_from_model,
)
from perceivers.checkpoints.loading import load_with_info
from perceivers.checkpoints.pickles import read_parameter_pickle
from perceivers.errors import CheckpointError, ConfigError
from perceivers.models import PerceiverIO, create_model

GOLDEN = Path(__file__).parents[1] / "golden"
CONV = GOLDEN / "dmr_cls_conv_batchnorm.npz"


def tree(arrays: dict[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    nested: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        module, _, leaf = key.rpartition(":")
        nested.setdefault(module, {})[leaf] = array
    return nested


def stored(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Configuration with shapes, parameters and state of a bundle."""
    with np.load(path) as archive:
        parts = {
            part: {k.removeprefix(part): archive[k] for k in archive.files if k.startswith(part)}
            for part in ("param/", "state/", "input/")
        }
        config = json.loads(str(archive["config_json"]))
    config["shapes"] = {name: array.shape for name, array in parts["input/"].items()}
    return config, parts["param/"], parts["state/"]


def write(folder: Path, config: Any, content: Any) -> tuple[Path, Path]:
    (folder / "x.json").write_text(json.dumps(config))
    (folder / "x.pystate").write_bytes(pickle.dumps(content))
    return folder / "x.pystate", folder / "x.json"


def test_a_file_with_state_is_read_as_its_bundle(tmp_path: Path) -> None:
    config, params, state = stored(CONV)
    assert any(array.dtype.kind == "i" for array in state.values())
    source, stated = write(tmp_path, config, {"params": tree(params), "state": tree(state)})
    pv.convert(source, tmp_path / "a", config=stated)
    pv.convert(CONV, tmp_path / "b")
    ours, theirs = pv.load(tmp_path / "a"), pv.load(tmp_path / "b")
    assert ours.config == theirs.config
    other = theirs.state_dict()
    assert all(torch.equal(x, other[name]) for name, x in ours.state_dict().items())


def test_a_file_without_its_state_is_refused(tmp_path: Path) -> None:
    config, params, _ = stored(CONV)
    for content in (tree(params), {"params": tree(params), "state": {}}):
        source, stated = write(tmp_path, config, content)
        with pytest.raises(CheckpointError, match=r"missing: .*/mean_ema:average"):
            pv.convert(source, tmp_path / "a", config=stated)


def test_numpy_scalars_and_only_numbers_are_accepted_in_state(tmp_path: Path) -> None:
    params = {"m": {"w": np.ones(2, np.float32)}}
    path = tmp_path / "x.pystate"
    path.write_bytes(pickle.dumps({"params": params, "state": {"s": {"counter": np.int32(7)}}}))
    found = read_parameter_pickle(path)
    assert found["s:counter"].shape == ()
    assert int(found["s:counter"]) == 7
    path.write_bytes(pickle.dumps({"params": {"m": {"w": np.int32(1)}}, "state": {}}))
    with pytest.raises(CheckpointError, match=r"m:w is not an array of floats"):
        read_parameter_pickle(path)
    path.write_bytes(pickle.dumps({"params": [1], "state": {}}))
    with pytest.raises(CheckpointError, match=r"holds a list, not module -> name -> array"):
        read_parameter_pickle(path)


@pytest.mark.parametrize("name", sorted(RELEASES.values()))
def test_a_release_is_told_by_its_names(name: str) -> None:
    config = haiku_perceiver.configure(
        haiku_perceiver.VARIANTS[name], inputs=None, num_classes=None, head="query", overrides={}
    )
    names = {entry.theirs: np.zeros(0) for entry in haiku_entries(config)}
    assert find_release(names) == name
    assert len(names) == len(haiku_entries(config))


def test_names_of_no_release_need_a_description(tmp_path: Path) -> None:
    assert find_release({"perceiver_encoder/~/cross_attention/mlp/linear:w": np.zeros(1)}) is None
    config, params, _ = stored(GOLDEN / "dmr_composed_classic_perceiver.npz")
    source, stated = write(tmp_path, config, tree(params))
    with pytest.raises(CheckpointError, match=r"of none of .*give --config with a JSON file hold"):
        pv.convert(source, tmp_path / "a")
    assert pv.convert(source, tmp_path / "a", config=stated).parameters == 12_791
    with pytest.raises(ConfigError, match=r"defines the computation itself; leave out flavour=hf"):
        pv.convert(source, tmp_path / "b", config=stated, flavour="hf")


def small_release(monkeypatch: pytest.MonkeyPatch) -> PerceiverIO:
    """Let the name of the learned release stand for a small one."""
    settings = {
        **haiku_perceiver.VARIANTS["perceiver_io_imagenet_learned"],
        "inputs": {"image": pv.Image(4, 4, 3)},
        "trunk": create_model(
            "perceiver_io_nano", inputs={"image": pv.Image(4, 4, 3)}
        ).config.trunk,
    }
    variants = {"perceiver_io_imagenet_learned": settings}
    monkeypatch.setattr(haiku_perceiver, "VARIANTS", variants)
    config = haiku_perceiver.configure(
        settings, inputs=None, num_classes=None, head="query", overrides={}
    )
    return PerceiverIO(config)


@pytest.mark.slow
def test_a_released_file_needs_no_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_release(monkeypatch)
    path = tmp_path / "imagenet_learned_position_encoding.pystate"
    path.write_bytes(pickle.dumps({"params": tree(params_from_model(model)), "state": {}}))
    pv.convert(path, tmp_path / "official")
    pv.convert(path, tmp_path / "hf", flavour="hf")
    official, other = (load_with_info(tmp_path / name) for name in ("official", "hf"))
    assert official.info.license == "CC-BY-4.0"
    assert other.info.provenance["flavour"] == "hf"
    assert (official.model.config.decoder.residual, other.model.config.decoder.residual) == (
        False,
        True,
    )
    assert official.model.config.trunk.activation == "gelu_tanh"
    assert other.model.config.trunk.activation == "gelu"
    theirs = model.state_dict()
    for loaded in (official, other):
        state = loaded.model.state_dict()
        assert all(torch.equal(x, theirs[name]) for name, x in state.items())


@pytest.mark.slow
def test_a_release_of_other_sizes_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config, params, state = stored(GOLDEN / "dmr_cls_learned_conv1x1.npz")
    source, stated = write(tmp_path, config, {"params": tree(params), "state": tree(state)})
    with pytest.raises(
        CheckpointError, match=r"The names are those of perceiver_io_imagenet_learned; "
    ):
        pv.convert(source, tmp_path / "a")
    assert pv.convert(source, tmp_path / "a", config=stated).parameters > 0


# -- HiP -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["hip3_two_datasets", "hip5_two_transpose", "hipcb3_two_modalities_two_labels", "io_two"],
)
def test_a_hip_goes_out_and_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    """A bundle, our folder, Haiku parameters, our folder: names, values and configuration."""
    pv.convert(GOLDEN / f"{name}.npz", tmp_path / "a")
    done = pv.convert(tmp_path / "a", tmp_path / "b.npz", to="haiku")
    assert done.notes == ()
    _, original, _ = stored(GOLDEN / f"{name}.npz")
    _, written, _ = stored(tmp_path / "b.npz")
    assert written.keys() == original.keys()
    assert all(np.array_equal(written[key], original[key]) for key in original)
    pv.convert(tmp_path / "b.npz", tmp_path / "c")
    ours, again = load_with_info(tmp_path / "a"), load_with_info(tmp_path / "c")
    assert again.model.config == ours.model.config
    assert again.info.provenance["converted_from"] == "Haiku parameters"
    other = again.model.state_dict()
    assert all(torch.equal(x, other[key]) for key, x in ours.model.state_dict().items())


def test_a_hip_of_our_own_goes_out_with_notes_and_back(tmp_path: Path) -> None:
    inputs = {"image": pv.Image(8, 8, 3), "audio": pv.Audio(50)}
    model = pv.create_model("hip_nano", inputs=inputs).eval()
    model.save_pretrained(tmp_path / "a")
    done = pv.convert(tmp_path / "a", tmp_path / "b.npz", to="haiku")
    prefix = "DeepMind's code runs these weights differently: "
    assert [note.removeprefix(prefix) for note in done.notes] == [
        "deal_over is 'declared' here and 'present' there",
        "mask_padding is True here and False there",
    ]
    assert done.parameters == sum(p.numel() for p in model.parameters())
    pv.convert(tmp_path / "b.npz", tmp_path / "c")
    again = pv.load(tmp_path / "c")
    assert again.config == model.config
    other = again.state_dict()
    assert all(torch.equal(x, other[key]) for key, x in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"b\.npz holds no output/\.\.\. to compare with"):
        pv.convert(tmp_path / "b.npz", tmp_path / "d", verify=True)
    arrays = dict(np.load(tmp_path / "b.npz"))
    key = next(key for key in arrays if key.endswith("query_linear:w"))
    np.savez(tmp_path / "e.npz", **{k: x for k, x in arrays.items() if k != key})
    with pytest.raises(CheckpointError, match=rf"missing: {key.removeprefix('param/')}"):
        pv.convert(tmp_path / "e.npz", tmp_path / "f")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_classes": 3}, r"no name for \['head\."),
        ({"query_heads": 2}, r"support this model: query_heads is 2 here and 1 there"),
        ({"element_order": "morton"}, r"element_order is 'morton' here and 'raster' there"),
        ({"positions": "fourier"}, r"the model lacks \['encoder\.inputs\.positions\.image\.table"),
        ({"query_product": True}, r"no name for \["),
        ({"inputs": {"points": pv.Points(40, 3, ragged=True)}}, r"elements of \['points'\] may be"),
    ],
)
def test_a_hip_that_the_released_code_cannot_hold_is_not_written(
    settings: dict[str, Any], text: str, tmp_path: Path
) -> None:
    model = pv.create_model("hip_nano", **{"inputs": {"image": pv.Image(8, 8, 3)}, **settings})
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match=text):
        pv.convert(tmp_path / "a", tmp_path / "b.npz", to="haiku")
    assert not (tmp_path / "b.npz").exists()
