"""What is planned, and for what machine; one set of fields serves Python and the command line."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from perceivers.errors import ConfigError
from perceivers.plan.counting import Precision
from perceivers.settings import Count, Natural, NonNegative, Positive, Range, Settings, UsedIf

DEFAULT_UTILISATION = 0.35
ASSUMED = UsedIf("measure", 0, otherwise="where --measure finds the speed of this machine")


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Settings, prefix=""):
    """What is planned, and for what machine."""

    model: str
    """A variant name ('perceivers models'); with --data also a model or run folder."""
    task: str = ""
    """As in training; pretrain where the model can, else classify, when not given."""
    data: str = ""
    """A data address, whose sizes and classes are read, instead of --inputs alone."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Modalities by name, such as {video: {frames: 8, height: 224, width: 224}}; changes of the
    data's sizes beside --data; the variant's own when neither is given."""
    classes: Annotated[Count, UsedIf("data", "", otherwise="where --data has its own")] = 1000
    """Classes of a classifier that is planned without data."""
    batch_size: Count = 64
    """Samples per step and device."""
    accumulate: Count = 1
    """Parts in which a batch is computed."""
    precision: Precision = "bf16"
    """bf16 (autocast), float32 or bf16-pure."""
    recompute: bool = False
    """Recompute layers in the backward pass."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the training verb, such as {mask: {ratio: 0.6}}."""
    samples: NonNegative = 0.0
    """Samples of the data set; those of --data when not given."""
    epochs: Annotated[Positive, UsedIf("steps", 0)] = 1.0
    """Times that each is seen."""
    steps: Natural = 0
    """Steps of the run, instead of epochs."""
    device: str = "h100"
    """Accelerator: h200, h100, a100, a100_40, l40s, l4, rtx4090 or mi300x."""
    memory: NonNegative = 0.0
    """Memory per device in GB, instead of the table's."""
    peak: Annotated[NonNegative, ASSUMED] = 0.0
    """Operations per second per device in TFLOP/s, instead of the table's."""
    devices: Count = 1
    """Devices that train together, over all nodes."""
    sharded: Annotated[bool, UsedIf("devices", above=1)] = False
    """Divide weights, gradients and moments among the devices (FSDP)."""
    utilisation: Annotated[float, Range(above=0, most=1), ASSUMED] = DEFAULT_UTILISATION
    """Share of the peak that a step reaches, 0..1 (model FLOPs utilisation)."""
    measure: Natural = 0
    """Steps to run on this machine, whose speed then takes the place of peak and utilisation."""
    sample_bytes: NonNegative = 0.0
    """Size of a stored sample in bytes; that of --data where it is shards."""
    hourly_cost: NonNegative = 0.0
    """Price of one device for an hour."""

    def __post_init__(self) -> None:
        """Reject values out of range."""
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size={self.batch_size} does not divide into accumulate={self.accumulate} "
                f"parts"
            )
