"""Names of models, their peers in other libraries, and sizes that they can have."""

from typing import Any

import pytest
import torch

from perceivers.bench import subjects
from perceivers.bench.subjects import add_peers, build_subject, check_sizes, find_subject
from perceivers.errors import ConfigError

CPU = torch.device("cpu")


def install(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    monkeypatch.setattr(subjects, "is_there", lambda library: library in libraries)


def test_peers_are_the_same_models_of_installed_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["hip_16", "perceiver_io_imagenet_fourier", "hiera_tiny_224"]
    install(monkeypatch)
    assert add_peers(names) == names
    install(monkeypatch, "transformers")
    assert add_peers(names)[3:] == [
        "transformers:perceiver_io_imagenet_fourier",
        "transformers:hiera_tiny_224",
        "transformers:resnet_50",
    ]
    install(monkeypatch, "hiera")
    assert add_peers([*names, "hiera:hiera_tiny_224"])[3:] == ["hiera:hiera_tiny_224"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hip_17", "model 'hip_17' is unknown.*did you mean 'hip_16'"),
        ("jax:hip_16", "library 'jax' is unknown; choose from"),
        ("transformers:resnet_5", "did you mean 'resnet_50'"),
        ("hiera:hiera_tiny_224", "needs a missing package: pip install hiera-transformer"),
    ],
)
def test_an_unknown_model_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "transformers")
    with pytest.raises(ConfigError, match=message):
        find_subject(name)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("hiera_nano", 250, "hiera_nano cannot be measured on images of 250 x 250 pixels"),
        ("hiera_nano_video", 64, "hiera_nano_video cannot be measured"),
    ],
)
def test_a_size_that_a_model_cannot_have_is_refused(name: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sizes([find_subject(name)], [64, size])
    check_sizes([find_subject("hip_nano"), find_subject("hiera_nano")], [64])


def test_our_model_reads_its_own_input() -> None:
    subject = find_subject("hip_nano")
    built = build_subject(subject, 8, 2, CPU)
    assert built.run(built.pictures).shape == (2, 1000)
    assert (subject.label, find_subject("hip_16").version) == ("hip_nano", subject.version)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["perceiver_io_imagenet_conv", "hiera_tiny_224", "resnet_50"])
def test_the_other_library_has_the_same_model(name: str) -> None:
    subject = find_subject(f"transformers:{name}")
    built: Any = build_subject(subject, 64, 1, CPU)
    assert subject.label == f"{name} (transformers)"
    assert built.run(built.pictures).shape == (1, 1000)
    if name != "resnet_50":
        ours = build_subject(find_subject(name), 64, 1, CPU)
        counts = [sum(p.numel() for p in each.module.parameters()) for each in (built, ours)]
        assert counts[0] == counts[1]
