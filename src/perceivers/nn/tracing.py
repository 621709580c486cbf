"""Whether somebody records or transforms what is computed, instead of just computing it."""

import torch


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces the call; torch 2.6 cannot tell it from compiling."""
    ask = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return ask()


def is_traced() -> bool:
    """Return whether a compiler, an exporter, a tracer or a functorch transform is at work."""
    return (
        torch.compiler.is_compiling()
        or is_exporting()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or torch._C._are_functorch_transforms_active()
    )
