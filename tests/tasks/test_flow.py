"""Optical flow: end-point errors by hand, unknown pixels, the scale, models that answer none."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import perceivers as pv
from perceivers.data import Batch
from perceivers.errors import ConfigError, DataError
from perceivers.tasks.flow import FlowConfig, OpticalFlow, flow_modality

NAN = float("nan")


class Constant(nn.Module):
    """Answers every pixel with one vector, in units of the model."""

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor([x, y]))
        output = SimpleNamespace(channels=2, queries="tokens", modality="video")
        spec = pv.Video(2, 2, 3)
        self.config = SimpleNamespace(inputs={"video": spec}, outputs={"flow": output})

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, 2, H, W]."""
        video = inputs["video"]
        return self.vector.view(1, 2, 1, 1).expand(len(video), 2, *video.shape[-2:])


def batch_of(flow: Tensor | None) -> Batch:
    count = 1 if flow is None else len(flow)
    inputs = {"video": torch.zeros(count, 3, 2, 2, 3, dtype=torch.uint8)}
    if flow is not None:
        inputs["flow"] = flow
    return Batch(inputs, None, torch.arange(count), [])


def flow_of(x: float, y: float, count: int = 1) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(count, 2, 2, 3).clone()


def test_the_end_point_error_by_hand(rng: torch.Generator) -> None:
    # The model says (0.5, 1) units of 20 pixels: (10, 20) pixels. The truth is 3 and 4 less.
    task = OpticalFlow(Constant(0.5, 1.0), FlowConfig())
    batch = batch_of(flow_of(7.0, 16.0))
    assert float(task(batch, rng).total.detach()) == pytest.approx(5.0 / 20, rel=1e-5)
    figures = task.evaluate([batch])
    assert figures["epe"] == pytest.approx(5.0, rel=1e-5)
    assert figures["epe_of_zero"] == pytest.approx(math.hypot(7.0, 16.0), rel=1e-5)
    assert figures["outliers"] == 1.0  # off by more than 3 px and 5 %


def test_the_scale_turns_units_into_pixels(rng: torch.Generator) -> None:
    for scale, epe in ((20.0, 5.0), (2.0, math.hypot(7.0 - 1.0, 16.0 - 2.0))):
        task = OpticalFlow(Constant(0.5, 1.0), FlowConfig(scale=scale))
        batch = batch_of(flow_of(7.0, 16.0))
        assert task.evaluate([batch])["epe"] == pytest.approx(epe, rel=1e-5)
        assert float(task(batch, rng).total.detach()) == pytest.approx(epe / scale, rel=1e-5)


def test_the_other_loss_is_the_mean_of_both_components(rng: torch.Generator) -> None:
    task = OpticalFlow(Constant(0.5, 1.0), FlowConfig(kind="l1"))
    found = float(task(batch_of(flow_of(7.0, 16.0)), rng).total.detach())
    assert found == pytest.approx((3.0 + 4.0) / 2 / 20, rel=1e-5)


@pytest.mark.parametrize("kind", ["epe", "l1"])
def test_unknown_pixels_weigh_nothing(rng: torch.Generator, kind: Any) -> None:
    task = OpticalFlow(Constant(0.5, 1.0), FlowConfig(kind=kind))
    flow = flow_of(7.0, 16.0, 2)
    expected, figures = (
        float(task(batch_of(flow), rng).total.detach()),
        task.evaluate([batch_of(flow)]),
    )
    flow[0, :, 0, :] = NAN
    flow[1, 0, 1, 2] = NAN  # one component alone
    flow[1, 1, 1, 2] = 1e6
    losses = task(batch_of(flow), rng)
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-6)
    losses.total.backward()
    assert bool(task.model.vector.grad.isfinite().all())
    assert task.evaluate([batch_of(flow)]) == pytest.approx(figures)


def test_pairs_without_any_known_pixel_are_left_out(rng: torch.Generator) -> None:
    task = OpticalFlow(Constant(0.5, 1.0), FlowConfig())
    unknown = batch_of(torch.full((1, 2, 2, 3), NAN))
    assert float(task(unknown, rng).total.detach()) == 0.0
    known = batch_of(flow_of(7.0, 16.0))
    assert task.evaluate([unknown, known]) == task.evaluate([known])
    assert task.evaluate([unknown]) == {"epe": 0.0, "epe_of_zero": 0.0, "outliers": 0.0}


def test_pixels_count_alike_whatever_their_batch() -> None:
    task = OpticalFlow(Constant(0.0, 0.0), FlowConfig())
    few = flow_of(10.0, 0.0)
    few[:, :, :, 1:] = NAN  # two pixels of six
    figures = task.evaluate([batch_of(few), batch_of(flow_of(0.0, 2.0))])
    assert figures["epe"] == pytest.approx((2 * 10.0 + 6 * 2.0) / 8)
    assert figures["epe"] == figures["epe_of_zero"]
    assert figures["outliers"] == pytest.approx(2 / 8)


def test_an_error_of_zero_has_a_slope(rng: torch.Generator) -> None:
    task = OpticalFlow(Constant(0.0, 0.0), FlowConfig())
    task(batch_of(flow_of(0.0, 0.0)), rng).total.backward()
    assert task.model.vector.grad.tolist() == [0.0, 0.0]


def test_data_without_flow_are_refused(rng: torch.Generator) -> None:
    task = OpticalFlow(Constant(0.0, 0.0), FlowConfig())
    with pytest.raises(DataError, match=r"needs data with flow: 'warps:PHOTOGRAPHS'"):
        task(batch_of(None), rng)


def test_models_without_flow_and_odd_settings_are_refused() -> None:
    model = pv.create_model("perceiver_io_nano", inputs={"video": pv.Video(2, 8, 8)})
    with pytest.raises(ConfigError, match=r"an output 'flow' of 2 channels per pixel"):
        flow_modality(model)
    with pytest.raises(ConfigError, match="an output 'flow'"):
        OpticalFlow(pv.create_model("hip_nano", inputs={"image": pv.Image(8, 8)}), FlowConfig())
    with pytest.raises(ConfigError, match=r"flow\.scale is 0\.0; it must be positive"):
        FlowConfig(scale=0.0)


def test_a_real_model_learns_at_its_own_size(rng: torch.Generator) -> None:
    spec = pv.Video(2, 8, 12, 3, mean=(0.5,), std=(0.5,))
    model = pv.create_model("perceiver_io_flow_tiny", inputs={"video": spec}, trunk={"depth": 1})
    task = OpticalFlow(model, FlowConfig())
    video = torch.randint(0, 256, (2, 3, 2, 8, 12), generator=rng, dtype=torch.uint8)
    flow = torch.randn(2, 2, 8, 12, generator=rng)
    batch = Batch({"video": video, "flow": flow}, None, torch.arange(2), [])
    task(batch, rng).total.backward()
    # The head starts at zero: a fresh model says no motion.
    figures = task.evaluate([batch])
    assert figures["epe"] == figures["epe_of_zero"] > 0
