"""HieraDet: the hierarchy that SAM 2 looks at pictures with, as a backbone or a classifier.

Legend: B batch, C channels, N classes.
Papers: SAM 2 (arXiv 2408.00714); Window Attention is Bugged (arXiv 2311.05613); Hiera (arXiv
2306.00989).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.adapters import ElementAdapter
from perceivers.models.hiera.backbone import Backbone, Pyramid
from perceivers.models.hiera.block import NORM_EPSILON, HieraBlock
from perceivers.models.hiera.initialise import DEVIATION, HEAD_SCALE
from perceivers.models.hiera_det.config import HieraDetConfig, check_smallest
from perceivers.models.hiera_det.encoder import HieraDetEncoder
from perceivers.models.hiera_det.positions import WindowPositions
from perceivers.nn.linear import Linear
from perceivers.settings import change
from perceivers.types import ModalitySpec


class HieraDet(Backbone):
    """A hierarchy of windows over one modality, by default pictures of 1024 x 1024 pixels.

    Any input size is legal from ``config.smallest_size`` on (29 x 29 for the released models); no
    size is filled up or cut first. The released code takes only sizes whose patches make whole
    windows of the first stage (multiples of 32), and there both agree.

    Args:
        config: The complete description.
    """

    family = "hiera_det"
    # What fine-tuning carries over: all but the read-out, which a trunk does not have.
    core = ("encoder.",)
    repeated = (HieraBlock,)
    config: HieraDetConfig

    def __init__(self, config: HieraDetConfig) -> None:
        super().__init__()
        self.config = config
        self.input = ElementAdapter(config.name, config.spec)
        self.encoder = HieraDetEncoder(config)
        self.norm = self.head = None
        if config.head.kind == "mean":
            self.norm = nn.LayerNorm(config.dims[-1], eps=NORM_EPSILON)
            self.head = Linear(config.dims[-1], config.head.num_outputs)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every parameter.

        Weights and positions: truncated normal of deviation 0.02; biases zero; logits times 0.001.
        The released code leaves this to its pre-training.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=DEVIATION)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, WindowPositions):
                for table in module.parameters():
                    nn.init.trunc_normal_(table, std=DEVIATION)
        if self.head is not None:
            self.head.weight.mul_(HEAD_SCALE)

    def forward(self, inputs: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "B C"]:
        """Return logits ``[B, N]``; without a head the mean of the last map, ``[B, C]``.

        Args:
            inputs: Raw tensor by the modality's name, or bare.

        Raises:
            InputError: The input is misshapen, or too small.
        """
        pooled = self.encoder(self._normalise(inputs))[-1].flatten(1, -2).mean(1)
        if self.norm is None or self.head is None:
            return pooled
        return self.head(self.dropout(self.norm(pooled)))

    def forward_features(self, inputs: Mapping[str, Tensor] | Tensor) -> Pyramid:
        """Return the maps of all stages, without a norm.

        A side of a map is that of the stage before divided by two and rounded down; the first is
        that of the input divided by four and rounded up (for the released models).

        Args:
            inputs: Raw tensor by the modality's name, or bare.

        Raises:
            InputError: The input is misshapen, or too small.
        """
        stages = self.encoder(self._normalise(inputs))
        return Pyramid(
            maps=tuple(tokens.movedim(-1, 1) for tokens in stages),
            strides=tuple(self.config.stride(stage) for stage in range(len(stages))),
            channels=self.config.dims,
        )

    def resized(self, inputs: Mapping[str, ModalitySpec]) -> "HieraDet":
        """Return a copy whose native size is another; no weight depends on that size.

        Raises:
            ConfigError: The modality, its kind or its channels differ.
            InputError: The size is too small.
        """
        self.check_resizable(inputs)
        model = type(self)(change(self.config, inputs=inputs)).to(next(self.parameters()))
        model.load_state_dict(self.state_dict())
        return model.train(self.training)

    def _normalise(self, inputs: Mapping[str, Tensor] | Tensor) -> Float[Tensor, "B C *size"]:
        """Return the input, channels first and in units of its statistics."""
        raw = self.channels_last(inputs)
        check_smallest(raw.shape[1:-1], self.config.smallest_size)
        return self.input.normalise(raw, self.encoder.stem.weight.dtype).movedim(-1, 1)
