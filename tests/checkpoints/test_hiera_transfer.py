"""Masked pre-training moved to classifiers: what is taken over, left behind and fresh."""

from pathlib import Path

import pytest
import torch
from tests.checkpoints import hiera_making as making

from perceivers.checkpoints.hiera_files import hiera_from_tensors, save_official
from perceivers.checkpoints.loading import transfer_encoder
from perceivers.checkpoints.torch_files import read_tensor_file
from perceivers.errors import CheckpointError
from perceivers.models.hiera import HieraConfig, HieraHead


def test_an_auto_encoder_s_weights_move_to_a_classifier(tmp_path: Path) -> None:
    """From an official file, whose norm of tokens becomes that of the mean token."""
    save_official(making.make(making.OFFICIAL["image_mae"]), tmp_path / "mae.pth")
    tensors = read_tensor_file(tmp_path / "mae.pth")
    source = hiera_from_tensors(tensors, "official", making.STATED_DECODER, "x")
    target = making.make(making.OFFICIAL["image"], seed=1)
    fresh = {name: x.clone() for name, x in target.state_dict().items()}
    moved = transfer_encoder(source, target)
    after = target.state_dict()
    assert {"norm.weight", "norm.bias", "encoder.positions.table"} <= set(moved.used)
    assert torch.equal(after["norm.weight"], tensors["encoder_norm.weight"])
    assert moved.fresh == ("head.weight", "head.bias")
    assert all(torch.equal(after[name], fresh[name]) for name in moved.fresh)
    # The report is complete: every tensor of either model is somewhere.
    assert sorted((*moved.used, *moved.dropped)) == sorted(source.state_dict())
    assert sorted((*moved.used, *moved.fresh)) == sorted(after)
    left = {".".join(name.split(".")[:2]) for name in moved.dropped}
    parts = ("fusion", "mask_token", "positions", "embed", "blocks", "norm", "predict")
    assert left == {f"decoder.{part}" for part in parts}
    # One more pooling at the last stage has no tensors, and changes what is computed.
    assert (source.config.pools, target.config.pools) == (2, 3)
    x = torch.rand(1, 3, 64, 64)
    assert [m.shape[-1] for m in source.forward_features(x).maps] == [16, 8, 4, 4]
    first, second = (m.forward_features(x).maps for m in (source, target))
    assert [m.shape[-1] for m in second] == [16, 8, 4, 2]
    assert torch.equal(first[2], second[2])


def test_a_segmenter_takes_the_encoder_without_the_norm() -> None:
    head = HieraHead(kind="segmentation", num_outputs=3, dim=8)
    source = making.make(making.OFFICIAL["image_mae"])
    target = making.make(HieraConfig(**making.PICTURE, head=head), seed=1)
    moved = transfer_encoder(source, target)
    assert all(name.startswith("encoder.") for name in moved.used)
    assert all(name.startswith("head.") for name in moved.fresh)
    assert {"norm.weight", "decoder.mask_token"} <= set(moved.dropped)


def test_encoders_of_other_tables_do_not_fit() -> None:
    source = making.make(making.OFFICIAL["image_mae"])
    target = making.make(making.OFFICIAL["image"]).with_window_positions()
    with pytest.raises(CheckpointError, match=r"differ at encoder\.positions\.window \(1 tensors"):
        transfer_encoder(source, target)
    assert transfer_encoder(source.with_window_positions(), target).fresh == (
        "head.weight",
        "head.bias",
    )
