"""Compile trained models for inference over many samples: predict, evaluate, embed."""

from collections.abc import Callable

from perceivers.checkpoints.loading import Loaded
from perceivers.data.augment import Views
from perceivers.models.compiling import CompiledParts, Uncompiled, check_compiler
from perceivers.tasks.metrics import device_of

# Callback that receives a message for the user.
Note = Callable[[str], object]


def compile_loaded(
    loaded: Loaded, batch_size: int, views: Views | None = None, *, on: bool
) -> Uncompiled:
    """Compile a model for full batches if ``on``; smaller batches run uncompiled.

    Args:
        loaded: The model, modified in place.
        batch_size: Batch size, in views if there are several views per sample.
        views: Numbers of temporal and spatial views per sample.
        on: Whether to compile.

    Raises:
        ConfigError: This machine has no working compiler.
    """
    if not on:
        return Uncompiled()
    check_compiler(device_of(loaded.model).type)
    count = 1 if views is None else views.count
    return CompiledParts(loaded.model, [max(1, batch_size // count)])


def tell(compiled: Uncompiled, note: Note | None) -> None:
    """Report the outcome of compilation after all samples have been processed."""
    text = compiled.summary()
    if text and note is not None:
        note(text)
