"""One graph without breaks: what compile and export need, cheaply (no code is generated).

The shape-checking hook breaks full graphs, so these run with ``pytest -m unhooked
--jaxtyping-packages=``.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from perceivers.masking import draw_mask_plan
from perceivers.models import HiP, HiPHead
from perceivers.types import Array, Audio, Labels, ModalitySpec

Build = Callable[..., HiP]
Draw = Callable[..., dict[str, Tensor]]
SETTINGS = {
    "reconstruction": {},
    "classes": {"head": HiPHead(kind="query", num_outputs=3), "decoder": False},
    "dense": {"head": HiPHead(kind="dense_full", num_outputs=2, modality="b")},
    "fourier": {"positions": "fourier", "num_bands": 3},
    "release": {"deal_over": "present", "mask_padding": False, "regroup": "transpose_reshape"},
}
pytestmark = pytest.mark.unhooked


@pytest.mark.parametrize("name", SETTINGS)
def test_a_forward_pass_is_one_graph(build: Build, draw: Draw, name: str) -> None:
    model, inputs = build(**SETTINGS[name]), draw()
    expected = model(inputs)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs), expected, rtol=0.0, atol=1e-12)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(compiled(draw()), expected)


def test_a_masked_training_step_is_one_graph(
    build: Build, draw: Draw, rng: torch.Generator
) -> None:
    specs: dict[str, ModalitySpec] = {"a": Audio(21), "b": Array((9, 5), 2), "label": Labels(5)}
    model, inputs = build(inputs=specs, labels=("label",)).train(), draw(specs)
    plan = draw_mask_plan(model.layout(), 2, ratio=0.5, generator=rng)

    def loss() -> Tensor:
        predictions = model.reconstruct(model.encode(inputs, plan), plan)
        return torch.stack([x.square().mean() for x in predictions.values()]).sum()

    torch.compiler.reset()
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="eager")):
        model.zero_grad()
        value = function()
        value.backward()
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        results.append((value.detach(), grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_a_model_exports_and_the_export_agrees(build: Build, draw: Draw) -> None:
    model, inputs = build(head=HiPHead(kind="query", num_outputs=3), decoder=False), draw()
    program = torch.export.export(model, (inputs,)).module()
    assert isinstance(program, nn.Module)
    torch.testing.assert_close(program(inputs), model(inputs), rtol=0.0, atol=1e-12)
    assert not torch.allclose(program(draw()), model(inputs))
