"""What is measured, and how often; one set of fields serves Python and the command line."""

from dataclasses import dataclass
from typing import Literal

import torch

from perceivers.errors import ConfigError
from perceivers.settings import Count, Positive, Settings

Pass = Literal["forward", "step"]
# In the order in which they are measured: the memory of a step hides that of a forward pass.
PASSES: tuple[Pass, ...] = ("forward", "step")
PERCEIVER_IO = "perceiver_io_imagenet_fourier"


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Settings, prefix=""):
    """What is measured, and how often."""

    models: tuple[str, ...] = ("hip_16", "hip_256", PERCEIVER_IO)
    """Names from ``perceivers models``, or LIBRARY:NAME, such as transformers:resnet_50."""
    sizes: tuple[Count, ...] = (224, 512)
    """Pixels per side of the square images."""
    passes: tuple[Pass, ...] = ("forward", "step")
    """forward (without gradients), step (forward and backward), or both."""
    rounds: Count = 2
    """Times that every model is measured at every size, in turn."""
    peers: bool = True
    """Whether the same models in other libraries are measured too, as far as those are installed,
    and ResNet-50."""
    reference: str = ""
    """Model whose time the speeds are relative to; the Perceiver IO, or else the first, when not
    given."""
    memory_limit: tuple[Positive, ...] = ()
    """GB in which the largest image that trains is searched; the largest limits all
    measurements."""
    batch_size: Count = 1
    """Images per pass."""
    threads: Count | None = None
    """Threads of torch; its own choice when not given."""
    precision: Literal["auto", "float32", "bf16", "bf16-pure"] = "auto"
    """bf16 is autocast, bf16-pure computes and keeps weights in bf16; auto is bf16 on CUDA and
    float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where there is a GPU."""
    timeout: Positive = 600.0
    """Seconds after which one measurement is given up."""

    def __post_init__(self) -> None:
        """Reject values out of range, nothing to measure, and what is named twice."""
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
        """The device, chosen."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    @property
    def computes_in(self) -> str:
        """The precision, chosen."""
        if self.precision == "auto":
            return "bf16" if self.computes_on == "cuda" else "float32"
        return self.precision
