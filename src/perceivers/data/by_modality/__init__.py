"""The modalities, one file each: decoding, fitting and describing samples.

The order is that of endings in messages.
"""

from perceivers.data.by_modality import arrays, images, points, sounds, texts, videos
from perceivers.data.modality import add_row

for _row in (
    *(images.ROW, sounds.ROW, videos.ROW, points.ROW, texts.ROW),
    *(arrays.ARRAY, arrays.LABELS, arrays.MASK, arrays.POINT_MASK),
):
    add_row(_row)
