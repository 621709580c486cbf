"""Counts without values agree with what torch counts on real tensors, for every system."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from perceivers.data import Batch
from perceivers.errors import InputError
from perceivers.models.registry import create_model
from perceivers.plan.counting import (
    StepCounter,
    StepCounts,
    Weights,
    count_weights,
    extrapolate,
    fused_attention,
)
from perceivers.tasks import (
    Autoencoding,
    AutoencodingConfig,
    Classification,
    ClassificationConfig,
    MaskedAutoencoding,
    MaskedAutoencodingConfig,
    MaskedLanguage,
    MaskedLanguageConfig,
    Task,
)
from perceivers.types import Audio, Bytes, Image, ModalitySpec, Points, Video

PICTURE: dict[str, ModalitySpec] = {"image": Image(64, 64, 3)}
SMALL: dict[str, ModalitySpec] = {"image": Image(32, 32, 3)}
CLIP: dict[str, ModalitySpec] = {"video": Video(4, 16, 16), "audio": Audio(512)}
TEXT: dict[str, ModalitySpec] = {"bytes": Bytes(64)}
POINTS: dict[str, ModalitySpec] = {"points": Points(16, 6, ragged=True)}
TOLERANCE = 0.1
# torch's counter gives its formulas shapes.
FUSED: dict[Any, Any] = {
    packet: lambda *args, formula=formula, **kwargs: formula(
        *(torch.empty(a, device="meta") if isinstance(a, torch.Size) else a for a in args)
    )
    for packet, formula in fused_attention().items()
}


def classify(name: str, specs: dict[str, ModalitySpec]) -> Task:
    model = create_model(name, inputs=specs, num_classes=5)
    return Classification(model, 5, ClassificationConfig(), None)


def mask(name: str, specs: dict[str, ModalitySpec], **settings: Any) -> Task:
    return MaskedAutoencoding(
        create_model(name, inputs=specs, **settings), MaskedAutoencodingConfig()
    )


def autoencode(name: str, specs: dict[str, ModalitySpec], mask_ratio: float = 0.0) -> Task:
    config = AutoencodingConfig(mask_ratio=mask_ratio)
    return Autoencoding(create_model(name, inputs=specs), config)


def fill_in(name: str, specs: dict[str, ModalitySpec]) -> Task:
    return MaskedLanguage(create_model(name, inputs=specs), MaskedLanguageConfig())


CASES: dict[str, tuple[Callable[..., Task], str, dict[str, ModalitySpec]]] = {
    "hip pretrain": (mask, "hip_nano", SMALL),
    "hip pretrain clips": (mask, "hip_nano", CLIP),
    "hip classify": (classify, "hip_nano", SMALL),
    "hiera pretrain": (mask, "mae_hiera_nano", PICTURE),
    "hiera classify": (classify, "hiera_nano", PICTURE),
    "perceiver classify": (classify, "perceiver_nano", SMALL),
    "perceiver_io classify": (classify, "perceiver_io_nano", SMALL),
    "perceiver_io autoencode": (autoencode, "perceiver_io_nano", SMALL),
    "perceiver_io mlm": (fill_in, "perceiver_io_text_tiny", TEXT),
}


def batch_of(specs: dict[str, ModalitySpec], size: int) -> Batch:
    """Return a batch of noise, or of ids of bytes."""
    draws = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randint(6, 200, (size, *spec.raw_shape), generator=draws)
        if isinstance(spec, Bytes)
        else torch.rand(size, *spec.raw_shape, generator=draws)
        for name, spec in specs.items()
    }
    rows = torch.arange(size)
    return Batch(inputs, rows % 5, rows, [], position=rows)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the profiler's native code writes to stderr."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def count_saved(task: Task, batch: Batch) -> int:
    """Return the bytes that torch saves for the backward pass, but for weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in task.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = task(batch, torch.Generator().manual_seed(0))
    del losses
    return sum(seen.values())


def measure_allocations(task: Task, batch: Batch) -> tuple[int, int]:
    """Return the bytes that torch's allocator holds after the forward pass, and the most."""

    def trace(*, backward: bool) -> tuple[int, int]:
        with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            losses = task(batch, torch.Generator().manual_seed(0))
            if backward:
                losses.total.backward()
        recorded: Any = profiler.profiler
        events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        for parameter in task.parameters():
            parameter.grad = None
        return now, peak

    return trace(backward=False)[0], trace(backward=True)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "recompute"),
    [(case, False) for case in CASES]
    + [(c, True) for c in ("hip classify", "hiera classify", "perceiver classify")]
    + [("perceiver_io mlm", True)],
)
def test_counts_agree_with_torch(case: str, recompute: bool) -> None:
    make, name, specs = CASES[case]
    counter = StepCounter(
        lambda: make(name, specs), lambda size: batch_of(specs, size), recompute=recompute
    )
    found = counter.count(4)
    assert counter.exact
    task, batch = make(name, specs).train(), batch_of(specs, 4)
    task.model.set_recompute(recompute)
    with FlopCounterMode(display=False, custom_mapping=FUSED) as flops:
        losses = task(batch, torch.Generator().manual_seed(0))
        forward = flops.get_total_flops()
        losses.total.backward()
    del losses
    for parameter in task.parameters():
        parameter.grad = None
    assert found.forward == pytest.approx(forward, rel=TOLERANCE)
    assert found.step == pytest.approx(flops.get_total_flops(), rel=TOLERANCE)
    kept, peak = measure_allocations(task, batch)
    assert found.kept == pytest.approx(kept, rel=TOLERANCE)
    assert found.peak == pytest.approx(peak, rel=TOLERANCE)

    if not recompute:
        assert found.kept == pytest.approx(count_saved(task, batch), rel=TOLERANCE)


def test_a_step_that_needs_values_is_computed() -> None:
    """How many hidden tokens are asked for follows from a drawn mask."""
    counter = StepCounter(
        lambda: autoencode("perceiver_io_nano", SMALL, 0.85), lambda size: batch_of(SMALL, size)
    )
    found = counter.count(8)
    assert not counter.exact
    task = autoencode("perceiver_io_nano", SMALL, 0.85).train()
    kept, peak = measure_allocations(task, batch_of(SMALL, 8))
    assert found.kept == pytest.approx(kept, rel=TOLERANCE)
    assert found.peak == pytest.approx(peak, rel=TOLERANCE)


def test_an_error_of_the_step_is_not_hidden() -> None:
    counter = StepCounter(lambda: classify("hip_nano", SMALL), lambda size: batch_of(PICTURE, size))
    with pytest.raises(InputError, match="64"):
        counter.count(2)


@pytest.mark.slow
def test_the_largest_batch_is_the_last_that_fits() -> None:
    counter = StepCounter(
        lambda: classify("perceiver_nano", SMALL), lambda size: batch_of(SMALL, size)
    )
    room = counter.count(50).peak + 1000
    assert counter.largest_batch(room, near=4) == 50
    assert counter.largest_batch(1000, near=4) == 0


def test_recomputing_keeps_less_and_computes_more() -> None:
    plain, again = (
        StepCounter(
            lambda: classify("hiera_nano", PICTURE),
            lambda size: batch_of(PICTURE, size),
            recompute=recompute,
        ).count(4)
        for recompute in (False, True)
    )
    assert again.kept < plain.kept
    assert again.forward == plain.forward
    assert plain.step < again.step < plain.step + plain.forward


@pytest.mark.slow
def test_half_precision_keeps_less() -> None:
    kept = [
        StepCounter(
            lambda: classify("hip_nano", SMALL),
            lambda size: batch_of(SMALL, size),
            precision=precision,
        )
        .count(16)
        .kept
        for precision in ("float32", "bf16", "bf16-pure")
    ]
    assert kept[0] > kept[1] > 0
    assert kept[2] < 0.6 * kept[0]


def test_weights_are_counted_exactly() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    assert count_weights(model, "bf16") == Weights(16, 12, 64, 48, 96)
    assert count_weights(model, "bf16-pure") == Weights(16, 12, 32, 24, 48)


def test_counts_lie_on_a_line() -> None:
    low, high = StepCounts(2, 10, 30, 100, 200), StepCounts(4, 20, 60, 150, 300)
    assert extrapolate(low, high, 10) == StepCounts(10, 50, 150, 300, 600)
