"""Long first reads in chunks: the same results and gradients, and little kept."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import perceivers as pv
from perceivers.models.hip import encoder
from perceivers.nn.chunking import map_chunks, use_chunks

CASES = {
    "one modality": ({"image": pv.Image(32, 32, 3)}, {}),
    "two, padded": ({"image": pv.Image(30, 31, 3), "audio": pv.Audio(1000, 1)}, {}),
    "padding seen": ({"image": pv.Image(30, 31, 3)}, {"mask_padding": False}),
    "Fourier": ({"image": pv.Image(32, 32, 3)}, {"positions": "fourier"}),
    "product of content and position": (
        {"image": pv.Image(32, 32, 3)},
        {"position_product": True, "element_order": "morton"},
    ),
    "interpolated positions": (
        {"image": pv.Image(30, 31, 3), "audio": pv.Audio(1000, 1)},
        {"position_stride": 4, "project_positions": "modality", "position_dim": 8},
    ),
    "interpolated in another order": (
        {"image": pv.Image(30, 31, 3)},
        {"position_stride": 4, "element_order": "morton"},
    ),
    "sub-sampled": ({"image": pv.Image(32, 32, 3)}, {}),
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CHUNKED_FROM", 1)
    monkeypatch.setattr(encoder, "CHUNK_SLOTS", 200)


def results(
    model: nn.Module, inputs: dict[str, torch.Tensor], *, on: bool
) -> Iterator[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    with use_chunks(on=on):
        out = model(inputs)
        yield out.detach()
        out.square().sum().backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            yield parameter.grad.clone()


@pytest.mark.parametrize("case", CASES)
def test_chunks_give_the_same_results_and_gradients(rng: torch.Generator, case: str) -> None:
    specs, options = CASES[case]
    model = pv.create_model("hip_nano", inputs=specs, num_classes=3, **options).double()
    if case == "sub-sampled":
        model.encoder.blocks[0].train_latents = 5
    inputs = {
        name: torch.randn(2, *spec.raw_shape, generator=rng, dtype=torch.float64)
        for name, spec in specs.items()
    }
    ours, whole = (list(results(model, inputs, on=on)) for on in (True, False))
    assert len(ours) == len(whole)
    for one, other in zip(ours, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def kept_bytes(side: int, rng: torch.Generator, *, on: bool, half: bool) -> int:
    """Bytes that a forward pass over uint8 pixels keeps, weights and tables left out."""
    model = pv.create_model("hip_nano", inputs={"image": pv.Image(side, side, 3)}, num_classes=3)
    raw = torch.randint(0, 256, (1, 3, side, side), generator=rng, dtype=torch.uint8)
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage
        return tensor

    with (
        use_chunks(on=on),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model({"image": raw})
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("half", [False, True])
def test_four_bytes_are_kept_of_a_pixel(rng: torch.Generator, half: bool) -> None:
    elements = 128**2 - 64**2
    kept = {}
    for on in (True, False):
        large, small = (kept_bytes(side, rng, on=on, half=half) for side in (128, 64))
        kept[on] = (large - small) / elements
    assert kept[True] == 4  # three colours, and whether the slot is filled
    assert kept[False] > 60


def test_what_is_kept_may_be_moved_away(rng: torch.Generator) -> None:
    model = pv.create_model("hip_nano", inputs={"image": pv.Image(32, 32, 3)}, num_classes=3)
    x = torch.randn(1, 3, 32, 32, generator=rng)
    model(x).sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), torch.from_numpy):
        model(x).sum().backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)


def test_parameters_that_were_replaced_are_noticed(rng: torch.Generator) -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(1, 4, 5, 3, generator=rng)
    out = map_chunks(layer, (x,), (layer,), length=2)
    layer.weight = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="were replaced"):
        out.sum().backward()
