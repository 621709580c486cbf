"""Settings of a training run: one set of dataclasses for Python, YAML and the command line.

``build_config`` turns keywords, YAML entries or flags into a config and names any wrong key.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from perceivers.data import AugmentConfig
from perceivers.data.flow_pairs import WARPS
from perceivers.errors import ConfigError, suggest
from perceivers.foreign import parse_yaml
from perceivers.reading import read_file
from perceivers.settings import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Part,
    Positive,
    Range,
    Rate,
    Seed,
    Settings,
    UsedIf,
)
from perceivers.tasks import (
    AutoencodingConfig,
    ClassificationConfig,
    FlowConfig,
    MaskedAutoencodingConfig,
    MaskedLanguageConfig,
    RegressionConfig,
    SegmentationConfig,
)
from perceivers.tasks.multilabel import MultilabelConfig
from perceivers.training.loggers import check_loggers

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Strategy = Literal["auto", "ddp", "fsdp"]
Precision = Literal["auto", "float32", "bf16", "bf16-pure"]
C = TypeVar("C", bound="TrainConfig")
# Limits of the operating system's timers (30 years) and of process-group timeouts (one year).
MOST_SECONDS, MOST_MINUTES = 1e9, 5e5
GENERATED = UsedIf("warps", True, otherwise="on measured pairs; they are for warps:PHOTOGRAPHS")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings, prefix="optimizer."):
    """Update rule. Biases and norms never decay; latents and position embeddings are optional."""

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    """adamw; lamb (as in the Perceiver papers; arXiv 1904.00962, weight norms not clamped); or
    muon (orthogonalised updates for weight matrices, arXiv 2502.16982; adamw for the rest)."""
    lr: Positive = 1e-3
    """Peak learning rate; it is not scaled with the batch size."""
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    momentum: Annotated[Rate, UsedIf("name", "muon")] = 0.95
    """Decay rate of Muon's momentum."""
    matrix_lr: Annotated[Positive, UsedIf("name", "muon")] = 3.0
    """Multiplier on the learning rate of the matrices that Muon updates."""
    weight_decay: NonNegative = 0.05
    """Weight decay per step, multiplied by the learning rate."""
    decay_arrays: Annotated[bool, UsedIf("weight_decay", above=0)] = False
    """Apply weight decay to latents, queries and position embeddings too, as in the Perceiver
    recipes."""
    eps: Positive | None = None
    """Added to the root of the second moment; None means 1e-8 for adamw and muon, and 1e-6 for
    lamb."""
    layer_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    """Learning-rate multiplier per layer below the head; 1 gives all layers the same rate."""
    position_lr: Positive = 20.0
    """Multiplier on the learning rate of learned positions, which need larger steps because they
    start from noise (docs/log.md)."""
    clip: NonNegative = 1.0
    """Maximum global gradient norm; 0 disables clipping."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Settings, prefix="schedule."):
    """Learning rate over the run, as a fraction of its peak."""

    name: Literal["cosine", "constant-cosine"] = "cosine"
    """cosine after warm-up, or constant for part of the run and then cosine."""
    warmup: Fraction = 0.05
    """Fraction of the steps used for linear warm-up, 0..1."""
    constant: Annotated[Fraction, UsedIf("name", "constant-cosine")] = 0.5
    """Fraction of the steps after which the rate starts to fall from its peak (constant-cosine
    only), 0..1."""
    final: Fraction = 0.0
    """Learning rate at the last step as a fraction of the peak, 0..1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings, prefix=""):
    """Settings shared by all training commands."""

    model: str
    """A variant name ('perceivers models'), a model folder or a run folder."""
    data: str
    """A data address: digits, a folder with one sub-folder per class, shards x-{000..099}.tar, or
    x.npz."""
    out: str
    """Run folder to create."""
    steps: Count = 2000
    """Optimizer steps."""
    batch_size: Count = 64
    """Samples per step and process, including all accumulated parts."""
    accumulate: Count = 1
    """Number of parts that a batch is split into for gradient accumulation, to save memory."""
    size: Count | None = None
    """Side of square images in pixels; None uses the size of the model or the data."""
    channels: Count | None = None
    """Colour channels of images; None uses those of the model or the data."""
    labels: list[str] = field(default_factory=list)
    """Label columns to learn, if the data has several; empty uses the data's default."""
    integer_labels: Literal["values", "indices"] = "values"
    """Meaning of integers in label columns: values (each distinct one is a class, unless they run
    from 0 without gaps) or indices of classes, from 0 to the highest."""
    modalities: list[str] = field(default_factory=list)
    """Modalities to read; empty reads all modalities of the data."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Sizes of modalities, for instance bytes: {length: 512} or video: {frames: 8}."""
    val_share: Part = 0.1
    """Fraction of the training data to hold out for validation if the data has no such split."""
    seed: Seed = 0
    """Random seed of weights, sample order, augmentation and masks."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    modality_dropout: Fraction | dict[str, Fraction] = 0.0
    """Probability that a modality of a training sample is dropped, 0..1, one value for all or by
    name; at least one modality always remains. For models that must handle missing modalities."""
    ema: Rate = 0.0
    """Decay of an exponential moving average of the weights, which is evaluated and saved instead
    of them; 0 disables it."""
    recompute: bool = False
    """Recompute self-attention layers in the backward pass, which saves memory and costs time."""
    compile: bool = False
    """Compile the model's blocks (torch.compile). The warm-up time is reported; CPUs gain little.
    Repeated runs agree bit for bit, but not with an uncompiled run."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's config to override, for instance drop_path_rate: 0.1."""
    precision: Precision = "auto"
    """auto (bf16 autocast on CUDA, and on CPUs if a run has at least 200 steps and bf16 is measured
    to be faster; float32 otherwise), float32, bf16 (autocast) or bf16-pure."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; auto uses CUDA if available."""
    devices: Count = 1
    """Number of devices per machine, each with its own process."""
    nodes: Count = 1
    """Number of machines; each runs the same command (torchrun, Slurm)."""
    strategy: Strategy = "auto"
    """ddp (every process holds the whole model), fsdp (the model is sharded over the processes), or
    auto (ddp if there are several processes)."""
    timeout_minutes: Annotated[float, Range(above=0, most=MOST_MINUTES)] = 10.0
    """Stop when the processes have waited this long for one of them."""
    workers: Natural = 0
    """Number of processes that read and augment data."""
    log_every: Count = 20
    """Steps between training records."""
    eval_every: Count = 200
    """Steps between evaluations on the validation split."""
    checkpoint_every: Count = 200
    """Steps between checkpoints."""
    patience: Natural = 0
    """Stop after this many evaluations without improvement; 0 disables early stopping."""
    minutes: NonNegative = 0.0
    """Stop after this many minutes of training; 0 means no limit."""
    limit: Natural = 0
    """Dry run: at most this many steps and evaluation batches; 0 means all."""
    max_bad_share: Fraction = 0.05
    """Stop when more than this fraction of the samples could not be read so far."""
    loader_timeout: Annotated[float, Range(0, MOST_SECONDS)] = 300.0
    """Stop when the data loader returns no batch for this many seconds; 0 waits forever."""
    memory_limit: NonNegative | None = None
    """Memory in GB that the run may use; by default the free memory. 0 skips the check."""
    loggers: list[str] = field(default_factory=list)
    """Loggers in addition to metrics.jsonl: tensorboard, trackio or wandb (offline unless
    WANDB_MODE is set)."""

    def __post_init__(self) -> None:
        """Reject values out of range, before anything is read or written."""
        super().__post_init__()
        check_loggers(self.loggers)
        if self.accumulate and self.batch_size % self.accumulate:
            raise ConfigError(
                f"batch_size={self.batch_size} does not divide into "
                f"accumulate={self.accumulate} parts"
            )
        if self.augment.copies and self.batch_size % self.augment.copies:
            raise ConfigError(
                f"batch_size={self.batch_size} counts the copies of a sample; it is not a multiple "
                f"of augment.copies={self.augment.copies}"
            )

    @property
    def total_steps(self) -> int:
        """Number of steps, at most ``limit`` in a dry run."""
        return min(self.steps, self.limit) if self.limit else self.steps

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data, with lists instead of tuples."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Masked autoencoding."""

    mask: MaskedAutoencodingConfig = field(default_factory=MaskedAutoencodingConfig)

    def __post_init__(self) -> None:
        """Reject latent targets without a teacher."""
        super().__post_init__()
        if self.mask.target != "latent" or self.mask.teacher:
            return
        if not self.ema:
            raise ConfigError(
                "mask.target=latent needs a teacher: give mask.teacher, a run or model folder of a "
                "masked autoencoder, or ema (0.99, say), so that averaged weights teach"
            )
        if self.strategy == "fsdp":
            raise ConfigError(
                "averaged weights cannot teach with strategy fsdp, where no process holds all of "
                "them; use strategy ddp, or give mask.teacher"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(TrainConfig):
    """Classification, from pre-trained weights (finetune) or from scratch (train)."""

    head: Literal["query", "mean"] = "query"
    """query (a learned query that attends to the processor) or mean (the mean of its latents)."""
    loss: ClassificationConfig = field(default_factory=ClassificationConfig)


@dataclass(frozen=True, kw_only=True)
class MlmConfig(TrainConfig):
    """Masked language modelling on bytes."""

    mlm: MaskedLanguageConfig = field(default_factory=MaskedLanguageConfig)


@dataclass(frozen=True, kw_only=True)
class AutoencodeConfig(TrainConfig):
    """Autoencoding through the latents, with or without masked tokens."""

    autoencode: AutoencodingConfig = field(default_factory=AutoencodingConfig)


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig(TrainConfig):
    """Several classifications at once, one per label column."""

    label_smoothing: Rate = 0.0
    """Fraction of the target that is spread evenly over a task's classes, 0..1."""


@dataclass(frozen=True, kw_only=True)
class MultilabelTrainConfig(TrainConfig):
    """Multi-label classification: any number of labels per sample."""

    multilabel: MultilabelConfig = field(default_factory=MultilabelConfig)


@dataclass(frozen=True, kw_only=True)
class FlowTrainConfig(TrainConfig):
    """Optical flow."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    max_flow: Annotated[Positive, GENERATED] = 8.0
    """Maximum motion of generated pairs (warps:PHOTOGRAPHS) in pixels."""
    repeats: Annotated[Count, GENERATED] = 4
    """Number of pairs generated from each photograph."""

    @property
    def warps(self) -> bool:
        """Whether the training pairs are generated from single images."""
        return self.data.startswith(WARPS)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(TrainConfig):
    """Semantic segmentation, from pre-trained weights (finetune) or from scratch (train)."""

    head: Literal["family", "bottleneck", "full", "queries", "pyramid"] = "family"
    """Dense head. HiP: bottleneck (from the processor) or full (through the decoder); Perceiver IO:
    queries; Hiera: pyramid. family uses the first one listed for the model family."""
    segment: SegmentationConfig = field(default_factory=SegmentationConfig)


@dataclass(frozen=True, kw_only=True)
class RegressConfig(TrainConfig):
    """Regression, from pre-trained weights (finetune) or from scratch (train)."""

    targets: list[str] = field(default_factory=list)
    """Columns of the data to predict."""
    head: Literal["query", "mean"] = "query"
    """query (a learned query that attends to the processor) or mean (the mean of its latents)."""
    regress: RegressionConfig = field(default_factory=RegressionConfig)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def build_config(kind: type[C], settings: Mapping[str, Any]) -> C:
    """Build a config from settings by name; nested settings may be dicts or config objects.

    Raises:
        ConfigError: A key is unknown (the message suggests the nearest one), or a value has the
            wrong type or is out of range.
    """
    from jsonargparse import ArgumentError

    parser = _parser_of(kind)
    plain = {key: _as_plain(value) for key, value in settings.items()}
    _check_keys(kind, plain)
    try:
        return kind(**parser.instantiate(parser.parse_object(plain)).as_dict())
    except ArgumentError as error:
        raise ConfigError(str(error)) from error


@cache
def _parser_of(kind: type[TrainConfig]) -> "ArgumentParser":
    # Cached, as building a parser takes longer than parsing with it.
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None)
    return parser


def _as_plain(value: Any) -> Any:
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value


def _check_keys(kind: Any, settings: Mapping[str, Any], prefix: str = "") -> None:
    fields = kind.__dataclass_fields__
    for key, value in settings.items():
        if key not in fields:
            raise ConfigError(
                f"unknown setting {prefix}{key}{suggest(key, fields)} "
                f"({kind.__name__} has {', '.join(fields)})"
            )
        nested = fields[key].default_factory
        if not hasattr(nested, "__dataclass_fields__"):
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"setting {prefix}{key} is {value!r}; it must hold settings of its own "
                f"({', '.join(nested.__dataclass_fields__)})"
            )
        _check_keys(nested, value, f"{prefix}{key}.")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: The file is missing, or not YAML, or not a mapping.
    """
    if not os.path.lexists(path):
        raise ConfigError(
            f"there is no file {path}, and no packaged recipe of that name; 'perceivers recipes' "
            f"lists those"
        )
    data = parse_yaml(read_file(path, limit="yaml", error=ConfigError), str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold 'setting: value' lines, found {type(data).__name__}")
    return data
