"""Exporting models to torch.export and ONNX files, each run and compared before it is trusted."""

from perceivers.exporting.files import Exported, export_model
from perceivers.exporting.graphs import PARTS

__all__ = ["PARTS", "Exported", "export_model"]
