"""The tasks, one file each: preparation, rebuilding, predictions and report.

The order is that of ``--help``; the first task of a verb is its default.
"""

from perceivers.workflows.by_task import (
    autoencoding,
    classification,
    flow,
    masked,
    mlm,
    multilabel,
    multitask,
    regression,
    segmentation,
)
from perceivers.workflows.task_table import register

for _task in (
    *(masked, autoencoding, mlm),
    *(classification, multilabel, multitask, flow, segmentation, regression),
):
    register(_task.ROW)
