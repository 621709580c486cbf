"""Hiera against the official code and timm's: stored outputs, and both live where installed.

The bundles were made once by tests/golden/make_hiera.py, in float64.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints import hiera_making as making
from torch import Tensor, nn

import perceivers as pv
from perceivers.checkpoints import verify as verifying
from perceivers.checkpoints.formats import Source, find_format
from perceivers.checkpoints.hiera_files import hiera_from_tensors, save_official
from perceivers.checkpoints.torch_files import read_tensor_file
from perceivers.checkpoints.verify import hiera_outputs, verify_hiera_tensors
from perceivers.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLES = sorted(path.name for path in GOLDEN.glob("hiera_*.npz"))


def rewrite(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a bundle with some arrays changed, or dropped where None."""
    with np.load(source) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for key, value in changes.items():
        arrays[key] = value
    kept: dict[str, Any] = {key: x for key, x in arrays.items() if x is not None}
    np.savez(target, **kept)
    return target


def first_output(source: Path) -> str:
    with np.load(source) as archive:
        return next(key for key in archive.files if key.startswith("output/"))


# -- stored ----------------------------------------------------------------------------------------


def test_there_is_a_bundle_of_every_kind() -> None:
    assert len(BUNDLES) == 7


@pytest.mark.parametrize("name", BUNDLES)
def test_every_stored_output_is_reproduced_in_float64(name: str, tmp_path: Path) -> None:
    done = pv.convert(GOLDEN / name, tmp_path / "ours", verify=True)
    assert done.is_verified
    assert max(d.largest for d in done.differences) < 1e-12
    names = {d.output for d in done.differences}
    assert names == {"loss", "prediction"} or {"stage1", "stage4"} < names


@pytest.mark.parametrize("name", BUNDLES)
def test_one_wrong_weight_is_noticed(name: str) -> None:
    source = Source(GOLDEN / name)
    row = find_format(source)
    model = row.build(source).model
    making.flip(model)
    assert not all(d.is_within for d in row.verify(source, model, "float64"))


@pytest.mark.parametrize("name", ["hiera_official_image.npz", "hiera_official_mae.npz"])
def test_a_bundle_must_hold_every_output_and_input(name: str, tmp_path: Path) -> None:
    key = first_output(GOLDEN / name)
    path = rewrite(GOLDEN / name, tmp_path / "x.npz", **{key: None})
    with pytest.raises(CheckpointError, match=r"stores the outputs \[.*the model has \["):
        pv.convert(path, tmp_path / "ours", verify=True)
    path = rewrite(GOLDEN / name, tmp_path / "y.npz", **{"input/raw": None, "input/x": np.ones(1)})
    with pytest.raises(CheckpointError, match=r"holds the inputs \[.*'x'\], expected"):
        pv.convert(path, tmp_path / "again", verify=True)


def test_a_bundle_of_an_unknown_library_is_refused(tmp_path: Path) -> None:
    config = '{"kind": "hiera", "library": "tim", "config": {}}'
    path = rewrite(GOLDEN / BUNDLES[0], tmp_path / "x.npz", config_json=np.array(config))
    with pytest.raises(
        CheckpointError, match=r"library is 'tim'; expected one of \['official', 'timm'"
    ):
        pv.convert(path, tmp_path / "ours")
    path = rewrite(
        GOLDEN / BUNDLES[0], tmp_path / "x.npz", config_json=np.array('{"kind": "hiera"}')
    )
    with pytest.raises(CheckpointError, match=r"config_json lacks 'library', which is required"):
        pv.convert(path, tmp_path / "ours")


def test_the_two_window_bundles_differ_in_what_they_cover(tmp_path: Path) -> None:
    """One widens by a Linear and enlarges its table; the other widens by pooling and shrinks it."""
    for name, shortcut, grid in (("window", "project", (5, 5)), ("window_pool", "pool", (20, 20))):
        source = Source(GOLDEN / f"hiera_timm_{name}.npz")
        config = find_format(source).build(source).model.config
        assert (config.shortcut, config.position_grid, config.native_grid) == (
            shortcut,
            grid,
            (16, 16),
        )


# -- live ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", making.OFFICIAL)
def test_the_official_package_computes_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making.official_package(monkeypatch)
    config = making.OFFICIAL[kind]
    making.make(config).save_pretrained(tmp_path / "ours")
    done = pv.convert(tmp_path / "ours", tmp_path / "x.pth", to="official", verify=True)
    assert done.is_verified
    assert max(d.largest for d in done.differences) < 1e-9
    tensors = read_tensor_file(tmp_path / "x.pth")
    stated = making.STATED_DECODER if config.decoder else making.STATED
    model = hiera_from_tensors(tensors, "official", stated, "x")
    assert all(d.is_within for d in verify_hiera_tensors(tensors, model, "official"))
    making.flip(model)
    assert not all(d.is_within for d in verify_hiera_tensors(tensors, model, "official"))


class StandIn(nn.Module):
    """Answers as the official class does, by our own model: for what surrounds the comparison."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.head = SimpleNamespace(act_func="softmax")
        self.inner: Any = None

    def load_state_dict(self, state: Any, *_: Any, **__: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Build our model from the file."""
        if "norm.weight" not in state and "encoder_norm.weight" not in state:
            raise RuntimeError("Missing key(s) in state_dict")
        stated = making.STATED_DECODER if "mask_token" in state else making.STATED
        self.inner = hiera_from_tensors(state, "official", stated, "x")

    def forward(self, x: Tensor, mask: Any = None, **_: Any) -> Any:
        """Return what the official class returns."""
        spec = self.inner.config.spec
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, std = (torch.tensor(v).to(x.dtype).reshape(shape) for v in (spec.mean, spec.std))
        made = hiera_outputs(self.inner, x * std + mean, mask)
        if mask is not None:
            return made["loss"], made["prediction"], None, mask
        assert isinstance(self.head.act_func, nn.Identity)
        return made["logits"], [made[f"stage{i}"].movedim(1, -1) for i in range(1, 5)]


@pytest.mark.parametrize("kind", making.OFFICIAL)
def test_the_comparison_itself_works_without_the_package(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = SimpleNamespace(Hiera=StandIn, MaskedAutoencoderHiera=StandIn)
    monkeypatch.setattr(verifying, "import_module", lambda _name: package)
    model = making.make(making.OFFICIAL[kind])
    save_official(model, tmp_path / "x.pth")
    tensors = read_tensor_file(tmp_path / "x.pth")
    found = verify_hiera_tensors(tensors, model, "official")
    assert all(d.is_within for d in found)
    masked = {"loss", "prediction"}
    whole = {"stage1", "stage2", "stage3", "stage4", "logits"}
    assert {d.output for d in found} == (masked if kind.endswith("mae") else whole)
    making.flip(model)
    assert not all(d.is_within for d in verify_hiera_tensors(tensors, model, "official"))
    with pytest.raises(CheckpointError, match=r"does not fit the official class: Missing key"):
        verify_hiera_tensors({}, model, "official")


def test_bundles_are_small() -> None:
    assert sum((GOLDEN / name).stat().st_size for name in BUNDLES) < 1_000_000
