"""Compilation of trained models for a pass over many samples: predict, evaluate, embed."""

from collections.abc import Callable

from perceivers.checkpoints.loading import Loaded
from perceivers.data.augment import Views
from perceivers.models.compiling import CompiledParts, Uncompiled, check_compiler
from perceivers.tasks.metrics import device_of

# Takes a sentence for the user.
Note = Callable[[str], object]


def compile_loaded(
    loaded: Loaded, batch_size: int, views: Views | None = None, *, on: bool
) -> Uncompiled:
    """Compile a model for full batches, if ``on``; what does not fill one runs uncompiled.

    Args:
        loaded: The model, changed in place.
        batch_size: Samples at once; views, where there are several of each sample.
        views: How many views of a sample there are.
        on: Whether it was asked for.

    Raises:
        ConfigError: This machine cannot compile.
    """
    if not on:
        return Uncompiled()
    check_compiler(device_of(loaded.model).type)
    count = 1 if views is None else views.count
    return CompiledParts(loaded.model, [max(1, batch_size // count)])


def tell(compiled: Uncompiled, note: Note | None) -> None:
    """Say what compilation came to, once a pass is over."""
    text = compiled.summary()
    if text and note is not None:
        note(text)
