"""Exporting models to torch.export and ONNX files, each run and compared before it is trusted."""

from perceivers.export.exporting import Exported, export_model
from perceivers.export.graphs import PARTS

__all__ = ["PARTS", "Exported", "export_model"]
