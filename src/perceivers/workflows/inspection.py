"""Tables of named models and released weights, and checks of the installation (``doctor``)."""

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.nn import functional as F

from perceivers.checkpoints.catalogue import (
    CATALOGUE,
    OwnWeights,
    ReleasedWeights,
    list_own_weights,
)
from perceivers.errors import ConfigError
from perceivers.machine import core_count, cpu_name
from perceivers.models.registry import FAMILIES, create_model, find_family, list_models
from perceivers.nn.linear import (
    choose_library,
    measure_speeds,
    multiply,
    multiply_half,
    onednn_works,
)
from perceivers.report.console import Grid, Shown
from perceivers.types import Image
from perceivers.version import __version__

EXTRAS = {
    "train": ("lightning-fabric", "pytorch-optimizer", "torchmetrics", "matplotlib", "jinja2"),
    "demo": ("scikit-learn",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "media": ("av", "imagecodecs", "soundfile", "soxr", "tifffile", "trimesh"),
    "tables": ("pyarrow",),
    "remote": ("urllib3",),
    "hub": ("datasets",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


@dataclass(frozen=True)
class ModelRow:
    """Size of one model variant.

    Attributes:
        name: Name for ``create_model``.
        paper: Paper that describes the model family.
        core: Number of parameters up to the latents, which fine-tuning keeps.
        total: Number of all parameters.
        latents: Latents x channels of a HiP's processor or of the latent array; for a Hiera, tokens
            x channels of the last stage.
        structure: Groups per level of a HiP, or reads, blocks and widths of other models.
        inputs: Inputs that the numbers refer to.
    """

    name: str
    paper: str
    core: int
    total: int
    latents: str
    structure: str
    inputs: str


def describe_models(pattern: str = "*") -> list[ModelRow]:
    """Count the parameters of matching variants, without allocating their weights."""
    rows = []
    for name in list_models(pattern):
        family = find_family(name)
        variant = FAMILIES[family].variants[name]
        settings = FAMILIES[family].example(variant)
        with torch.device("meta"):
            model = create_model(name, **settings)
        sizes = {n: parameter.numel() for n, parameter in model.named_parameters()}
        latents, structure = model.describe()
        rows.append(
            ModelRow(
                name=name,
                paper=FAMILIES[family].paper,
                core=sum(size for n, size in sizes.items() if n.startswith(model.core)),
                total=sum(sizes.values()),
                latents=latents,
                structure=structure,
                inputs=", ".join(
                    f"{key} {'x'.join(map(str, spec.raw_shape))}"
                    for key, spec in model.config.inputs.items()
                ),
            )
        )
    return rows


def describe_weights(pattern: str = "*") -> list[ReleasedWeights]:
    """Return the released weights whose name or variant matches a shell pattern."""
    return [w for w in CATALOGUE if fnmatch(w.name, pattern) or fnmatch(w.variant, pattern)]


def diagnose() -> list[tuple[str, str, bool]]:
    """Check the installation; return (subject, finding, whether it is fine) for each check."""
    findings = [
        ("perceivers", __version__, True),
        ("Python", platform.python_version(), sys.version_info >= (3, 11)),
        ("torch", torch.__version__, True),
        ("CPU", f"{cpu_name()}, {core_count()} cores, {torch.get_num_threads()} threads", True),
        ("matrix products", *describe_products()),
    ]
    if torch.cuda.is_available():
        findings.append(("CUDA", torch.cuda.get_device_name(), True))
    else:
        findings.append(("CUDA", "none; everything runs on the CPU", True))
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if not is_installed(name)]
        note = "installed" if not missing else f"missing {', '.join(missing)}"
        remedy = f' - pip install "perceivers[{extra}]"' if missing else ""
        findings.append((f"extra {extra}", note + remedy, not missing))
    findings.append(("a forward and backward pass", *try_model()))
    return findings


def describe_products() -> tuple[str, bool]:
    """Report the speed of matrix products, and the library used for float32."""
    ways: dict[str, Callable[..., Tensor]] = {"torch": F.linear}
    if onednn_works():
        ways["onednn"] = multiply
    ways["bf16 autocast"] = multiply_half
    speeds = ", ".join(f"{n} {v / 1e9:.0f}" for n, v in measure_speeds(ways).items())
    try:
        return f"{speeds} GFLOP/s; float32 by {choose_library()}", True
    except ConfigError as error:
        return str(error), False


def is_installed(package: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def try_model() -> tuple[str, bool]:
    """Run a forward and backward pass of a tiny model."""
    model = create_model("hip_nano", inputs={"image": Image(8, 8, 1)}, num_classes=2)
    loss = model(torch.rand(2, 1, 8, 8)).square().mean()
    loss.backward()
    fine = bool(torch.isfinite(loss))
    return ("works" if fine else f"loss is {float(loss)}"), fine


# -- The verbs models and doctor -----------------------------------------------------------------


def tabulate_models(pattern: str = "*", *, weights: bool = False) -> Shown:
    """List the named models with their sizes.

    Args:
        pattern: Shell pattern such as 'hip_*'.
        weights: List the packaged weights, and the released weights that convert reads.

    Raises:
        ConfigError: Nothing matches.
    """
    if weights:
        return _tabulate_weights(pattern)
    rows = describe_models(pattern)
    if not rows:
        raise ConfigError(f"no model matches {pattern!r}; available: {', '.join(list_models())}")
    header = ("model", "paper", "parameters", "encoder", "latents", "structure", "input size")
    cells = [
        (r.name, r.paper, f"{r.total:,}", f"{r.core:,}", r.latents, r.structure, r.inputs)
        for r in rows
    ]
    return Shown([Grid(header, cells)])


def _tabulate_weights(pattern: str) -> Shown:
    own, released = list_own_weights(pattern), describe_weights(pattern)
    if not own and not released:
        raise ConfigError(f"no released weights match {pattern!r}; '*' lists all")
    return Shown(
        [*([_grid_of_own(own)] if own else []), *([_grid_of(released)] if released else [])]
    )


def _grid_of_own(own: Sequence[OwnWeights]) -> Grid:
    header = ("name", "model", "task", "parameters", "size", "licence", "trained on", "metrics")
    rows = [
        (
            w.name,
            w.variant,
            w.task,
            f"{w.parameters:,}",
            f"{w.size / 1e6:.1f} MB",
            w.license,
            w.data,
            ", ".join(f"{name} {value:.4g}" for name, value in w.figures.items()),
        )
        for w in own
    ]
    return Grid(header, rows, title="Packaged weights")


def _grid_of(released: Sequence[ReleasedWeights]) -> Grid:
    header = ("weights", "model", "parameters", "licence", "read as", "sha256", "in")
    rows = [
        (
            w.name,
            w.variant,
            f"{w.parameters:,}",
            w.license,
            w.converter,
            w.sha256[:12] if w.sha256 else "unknown",
            w.source.removesuffix(f"/{w.name}"),
        )
        for w in released
    ]
    return Grid(header, rows)


def check_installation() -> Shown:
    """Check this machine and installation."""
    rows = [(what, text, "ok" if ok else "!") for what, text, ok in diagnose()]
    return Shown([Grid(("what", "finding", ""), rows)])
