"""Export models to torch.export and ONNX files; every file is run and compared with its model."""

from perceivers.exporting.files import Exported, export_model
from perceivers.exporting.graphs import PARTS

__all__ = ["PARTS", "Exported", "export_model"]
