"""Settings of a benchmark, for Python and the command line."""

from dataclasses import dataclass
from typing import Literal

import torch

from perceivers.errors import ConfigError
from perceivers.settings import Count, Positive, Settings

Pass = Literal["forward", "step"]
# In the order of measurement: after a step, its higher peak memory would hide that of a forward
# pass.
PASSES: tuple[Pass, ...] = ("forward", "step")
PERCEIVER_IO = "perceiver_io_imagenet_fourier"


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Settings, prefix=""):
    """Models, sizes and passes to measure, and how."""

    models: tuple[str, ...] = ("hip_16", "hip_256", PERCEIVER_IO)
    """Names from ``perceivers models``, or LIBRARY:NAME, such as transformers:resnet_50."""
    sizes: tuple[Count, ...] = (224, 512)
    """Sides of the square images in pixels."""
    passes: tuple[Pass, ...] = ("forward", "step")
    """forward (without gradients), step (forward and backward), or both."""
    rounds: Count = 2
    """Number of times that every model is measured at every size, in turn."""
    peers: bool = True
    """Also measure the same models in other libraries, if those are installed, and ResNet-50."""
    reference: str = ""
    """Model that speeds are relative to; by default the Perceiver IO if it is measured, else the
    first model."""
    memory_limit: tuple[Positive, ...] = ()
    """Memory limits in GB for which to search the largest image that can be trained on; the largest
    limit applies to all measurements."""
    batch_size: Count = 1
    """Images per pass."""
    threads: Count | None = None
    """Number of threads of torch; by default torch's own choice."""
    precision: Literal["auto", "float32", "bf16", "bf16-pure"] = "auto"
    """bf16 means autocast; bf16-pure also keeps the weights in bf16; auto is bf16 on CUDA and
    float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses CUDA if available."""
    timeout: Positive = 600.0
    """Seconds after which a measurement is stopped."""

    def __post_init__(self) -> None:
        """Reject values out of range, empty lists and duplicates."""
        super().__post_init__()
        for name in ("models", "sizes", "passes", "memory_limit"):
            values = getattr(self, name)
            if not values and name != "memory_limit":
                raise ConfigError(f"{name} is empty; give at least one")
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ConfigError(f"{name} names {twice[0]} twice; name it once")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', but torch finds no GPU here; use cpu or auto")

    @property
    def computes_on(self) -> str:
        """Device, with ``auto`` resolved."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    @property
    def computes_in(self) -> str:
        """Precision, with ``auto`` resolved."""
        if self.precision == "auto":
            return "bf16" if self.computes_on == "cuda" else "float32"
        return self.precision
