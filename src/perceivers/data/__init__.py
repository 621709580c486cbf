"""Open data sets by address and read them as reproducible batches."""

from perceivers.data.address import open_data, open_samples
from perceivers.data.augment import AugmentConfig, Views
from perceivers.data.byte_codec import decode_ids, encode_text
from perceivers.data.dataset import Dataset
from perceivers.data.files import find_files, read_files
from perceivers.data.loaders import Batch, make_eval_loader, make_train_loader
from perceivers.data.sources import Source

__all__ = [
    "AugmentConfig",
    "Batch",
    "Dataset",
    "Source",
    "Views",
    "decode_ids",
    "encode_text",
    "find_files",
    "make_eval_loader",
    "make_train_loader",
    "open_data",
    "open_samples",
    "read_files",
]
