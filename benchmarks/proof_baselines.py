"""Classical answers to the same questions on the same splits, with scikit-learn.

Every function takes opened data and returns the figure of the row it belongs to. Choices such as a
regularisation are made on the validation split, as for the models; the test split is used once.

Legend: n samples, F features.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from baseline_bytes import score_counts
from baseline_flow import mean_error
from baseline_masked import compare_with_mean
from perceivers.data import make_eval_loader
from perceivers.data.clouds import Scenes
from perceivers.data.dataset import Dataset
from perceivers.data.masks import Mask, kept_classes

Features = NDArray[np.float32]
SEED = 0
# Bytes of a text in the recipe masked_bytes.
TEXT_LENGTH = 64
MEL_BANDS = 40
MEL_FRAMES = 32


def majority(data: Dataset) -> float:
    """Share of the most common training class on the test split."""
    labels = {split: _labels(data, split) for split in ("train", "test")}
    return float((labels["test"] == np.bincount(labels["train"]).argmax()).mean())


def pixels(data: Dataset) -> float:
    """Random forest on pictures of 32 x 32 pixels."""
    features = {s: _batches(data, s, "image", height=32, width=32) for s in _splits(data)}
    forest = RandomForestClassifier(500, random_state=SEED, n_jobs=1)
    return _fit_and_test(data, _flat(features), [forest])


def whole_pixels(data: Dataset) -> float:
    """Random forest on whole pictures, squeezed to 32 x 32 pixels; mean over three seeds."""
    features = {split: np.array(_whole(data, split), np.float32) for split in _splits(data)}
    scores = [
        _fit_and_test(data, features, [RandomForestClassifier(500, random_state=seed, n_jobs=1)])
        for seed in range(3)
    ]
    return float(np.mean(scores))


def _whole(data: Dataset, split: str) -> list[np.ndarray]:
    rows = []
    for index in range(len(data.splits[split])):
        image = data.splits[split].read(index)["image"]
        assert isinstance(image, Image.Image)
        rows.append(np.asarray(image.convert("RGB").resize((32, 32))).ravel())
    return rows


def log_mel(data: Dataset) -> float:
    """Support vectors on log-mel spectrograms of 40 bands and 32 moments."""
    features = {s: _spectra(data, s) for s in _splits(data)}
    machines = [make_pipeline(StandardScaler(), SVC(C=c)) for c in (1.0, 10.0, 100.0)]
    return _fit_and_test(data, features, machines)


def log_mel_means(data: Dataset) -> float:
    """Support vectors on log-mel spectrograms whose frames are averaged over 16 or 32 parts.

    Whether silence at both ends is cut off, the number of parts and C are chosen on validation.
    """
    rate = getattr(data.specs(modalities=["audio"])["audio"], "sample_rate", 0) or 16_000
    waves = {s: _batches(data, s, "audio").mean(1).astype(np.float32) for s in _splits(data)}
    labels = {split: _labels(data, split) for split in waves}
    best: tuple[float, float] = (-1.0, 0.0)
    for trim in (False, True):
        spectra = {
            split: [_log_bands(np.trim_zeros(wave) if trim else wave, rate) for wave in found]
            for split, found in waves.items()
        }
        for parts in (16, 32):
            features = {s: np.array([_average(b, parts) for b in x]) for s, x in spectra.items()}
            for c in (1.0, 10.0, 100.0):
                machine = make_pipeline(StandardScaler(), SVC(C=c))
                machine.fit(features["train"], labels["train"])
                val, test = (
                    float(accuracy_score(labels[s], machine.predict(features[s])))
                    for s in ("val", "test")
                )
                # Of equals the first counts; the test split decides nothing.
                best = max(best, (val, test), key=lambda pair: pair[0])
    return best[1]


def _average(bands: NDArray[Any], parts: int) -> Features:
    """Return the mean of equal parts of log-mel bands ``[bands, frames]``, and their spread."""
    edges = np.linspace(0, bands.shape[1], parts + 1).astype(int)
    means = [bands[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(edges)]
    return np.concatenate([*means, bands.mean(1), bands.std(1)]).astype(np.float32)


def log_mel_neighbours(data: Dataset) -> float:
    """Nearest neighbours on the same spectrograms."""
    features = {s: _spectra(data, s) for s in _splits(data)}
    machines = [
        make_pipeline(StandardScaler(), KNeighborsClassifier(k, weights="distance"))
        for k in (1, 3, 9)
    ]
    return _fit_and_test(data, features, machines)


def occupancy(data: Dataset) -> float:
    """Random forest on which cells of a 20 x 20 grid hold points, a little blurred."""
    from scipy.ndimage import gaussian_filter

    features = {}
    for split in _splits(data):
        clouds = _batches(data, split, "points")
        grids = []
        for cloud in clouds:
            real = cloud[np.isfinite(cloud).all(1)]
            counts, _, _ = np.histogram2d(real[:, 1], real[:, 0], 20, range=[[-1, 1], [-1, 1]])
            grids.append(gaussian_filter((counts > 0).astype(np.float32), 1.0).ravel())
        features[split] = np.array(grids, np.float32)
    return _fit_and_test(data, features, [RandomForestClassifier(500, random_state=SEED, n_jobs=1)])


def ngrams(data: Dataset) -> float:
    """Linear support vectors on character n-grams of 1 to 5."""
    texts = {split: list(_texts(data, split)) for split in _splits(data)}
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True, min_df=2)
    features: Any = {"train": words.fit_transform(texts["train"])}
    features |= {s: words.transform(texts[s]) for s in texts if s != "train"}
    return _fit_and_test(data, features, [LinearSVC(C=c) for c in (0.3, 1.0, 3.0)])


def word_regression(data: Dataset) -> float:
    """Logistic regression on words."""
    texts = {split: list(_texts(data, split)) for split in _splits(data)}
    words = TfidfVectorizer(sublinear_tf=True)
    features: Any = {"train": words.fit_transform(texts["train"])}
    features |= {s: words.transform(texts[s]) for s in texts if s != "train"}
    machines = [LogisticRegression(C=c, max_iter=1000) for c in (1.0, 10.0)]
    return _fit_and_test(data, features, machines)


def frame_changes(data: Dataset) -> float:
    """Support vectors on differences of consecutive frames of 24 x 24 pixels in gray."""
    features = {}
    for split in _splits(data):
        clips = _batches(data, split, "video", frames=25, height=24, width=24)
        gray = clips.astype(np.float32).mean(1)  # [n, T, H, W]
        features[split] = np.abs(np.diff(gray, axis=1)).reshape(len(gray), -1)
    machines = [make_pipeline(StandardScaler(), SVC(C=c)) for c in (1.0, 10.0)]
    return _fit_and_test(data, features, machines)


def place_and_colour(data: Dataset) -> float:
    """Mean IoU of a random forest that knows a pixel's place, colour, and that of its surroundings.

    Pictures are 60 x 80; 200 pixels of each train the forest.
    """
    rng = np.random.default_rng(SEED)
    rows, labels = [], []
    for picture, mask in _masked(data, "train"):
        features, truth = _pixel_features(picture), mask.ravel()
        chosen = rng.choice(np.flatnonzero(truth < 255), 200)
        rows.append(features[chosen])
        labels.append(truth[chosen])
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=SEED, n_jobs=1)
    forest.fit(np.concatenate(rows), np.concatenate(labels))
    return _mean_iou(data, lambda picture: forest.predict(_pixel_features(picture)))


def most_common_pixel(data: Dataset) -> float:
    """Mean IoU of answering the most common class of the training pixels everywhere."""
    counts = np.zeros(256, np.int64)
    for _, mask in _masked(data, "train"):
        counts += np.bincount(mask.ravel(), minlength=256)
    common = int(counts[:255].argmax())
    return _mean_iou(data, lambda picture: np.full(picture[0].size, common))


def _mean_iou(data: Dataset, predict: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
    """Mean over the classes that occur of intersection over union on the test split."""
    known = len(kept_classes(data.mask_classes, "void")[0])
    matrix = np.zeros((known, known), np.int64)
    for picture, mask in _masked(data, "test"):
        truth, guess = mask.ravel(), predict(picture)
        there = truth < known
        matrix += confusion_matrix(truth[there], guess[there], labels=range(known))
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return float((matrix.diagonal()[union > 0] / union[union > 0]).mean())


def _pixel_features(picture: NDArray[Any]) -> Features:
    """Place, colour, and the colour of the 9 x 9 pixels around, ``[H * W, 8]``."""
    from scipy.ndimage import uniform_filter

    values = picture.astype(np.float32)
    height, width = values.shape[1:]
    place = np.mgrid[0:height, 0:width].astype(np.float32).reshape(2, -1)
    around = np.stack([uniform_filter(channel, 9) for channel in values])
    rows = np.concatenate([place, values.reshape(3, -1), around.reshape(3, -1)])
    return rows.T.astype(np.float32)


def _masked(data: Dataset, split: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pictures ``[3, 60, 80]`` and masks ``[60, 80]``."""
    classes, ignored = kept_classes(data.mask_classes, "void")
    specs = data.specs(size=(60, 80), channels=3)
    specs["mask"] = Mask(60, 80, len(classes), ignored)
    for batch in make_eval_loader(data.splits[split], specs, batch_size=16):
        yield from zip(
            batch.inputs["image"].numpy(), batch.inputs["mask"].numpy().squeeze(), strict=True
        )


def most_common_point(data: Dataset) -> float:
    """Mean IoU of answering the most common class of the training points everywhere."""
    known = len(data.mask_classes)
    counts = sum(np.bincount(ids, minlength=known)[:known] for _, ids in _scenes(data, "train"))
    common = int(np.argmax(counts))
    return _mean_point_iou(data, "test", lambda scene: np.full(len(scene), common))


def height_above_lowest(data: Dataset) -> float:
    """Mean IoU of calling objects what lies higher than so much above the lowest point around.

    Of two classes, the second is objects. How far around, and how high, both in metres, is chosen
    on the validation split.
    """
    choices = [(r, h) for r in (5, 10, 15, 20, 30) for h in (0.5, 1, 1.5, 2, 3, 4, 6, 8, 10)]
    scores = [
        _mean_point_iou(data, "val", partial(_is_high, around=around, height=height))
        for around, height in choices
    ]
    around, height = choices[int(np.argmax(scores))]
    return _mean_point_iou(data, "test", partial(_is_high, around=around, height=height))


def _is_high(scene: NDArray[Any], around: int, height: float) -> NDArray[np.int64]:
    """Return 1 for points ``[P, 3]`` so much above the lowest one within cells of 1 m around."""
    from scipy.ndimage import minimum_filter

    cells = np.floor(scene[:, :2] - scene[:, :2].min(axis=0)).astype(int)
    grid = np.full(cells.max(axis=0) + 1, np.inf)
    np.minimum.at(grid, (cells[:, 0], cells[:, 1]), scene[:, 2])
    lowest = minimum_filter(grid, 2 * around + 1, mode="constant", cval=np.inf)
    return (scene[:, 2] - lowest[cells[:, 0], cells[:, 1]] > height).astype(np.int64)


def byte_ngrams(data: Dataset, order: int) -> float:
    """Bits per hidden byte of counts of up to so many bytes, in texts as long as the recipe's."""
    split = "test" if "test" in data.splits else "val"
    _, found = score_counts(data, split, TEXT_LENGTH, [order])
    return found[f"{order}-grams"][0]


def no_motion(data: Dataset) -> float:
    """End-point error in pixels of answering that nothing moves."""
    return mean_error(data.splits["test"], 0)


def least_squares_motion(data: Dataset) -> float:
    """End-point error of Lucas and Kanade's least squares, with the best of three windows."""
    return min(mean_error(data.splits["test"], window) for window in (5, 15, 31))


def mean_film(run: Path, split: str) -> float:
    """Error of hidden patches when the mean of all training films is put there."""
    return compare_with_mean(run, split)["mean"]


def _mean_point_iou(
    data: Dataset, split: str, predict: Callable[[NDArray[Any]], NDArray[Any]]
) -> float:
    """Mean over the classes that occur of intersection over union of the points of a split."""
    known = len(data.mask_classes)
    matrix = np.zeros((known, known), np.int64)
    for scene, ids in _scenes(data, split):
        matrix += confusion_matrix(ids, predict(scene), labels=range(known))
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return float((matrix.diagonal()[union > 0] / union[union > 0]).mean())


def _scenes(data: Dataset, split: str) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield whole clouds ``[P, 3]`` and the class of every point ``[P]``."""
    source = data.splits[split].items
    assert isinstance(source, Scenes)
    assert source.ids is not None
    for first, end in source.spans:
        yield source.points[first:end].astype(np.float64), source.ids[first:end].astype(np.int64)


def _spectra(data: Dataset, split: str) -> Features:
    """Log-mel bands over time, both cut to a fixed size ``[n, F]``."""
    specs = data.specs(modalities=["audio"])
    rate = getattr(specs["audio"], "sample_rate", 0) or 16_000
    found = []
    for wave in _batches(data, split, "audio"):
        bands = _log_bands(np.trim_zeros(wave.mean(0).astype(np.float32)), rate)
        moments = np.linspace(0, bands.shape[1] - 1, MEL_FRAMES).round().astype(int)
        found.append(np.concatenate([bands[:, moments].ravel(), bands.mean(1), bands.std(1)]))
    return np.array(found, np.float32)


def _log_bands(sound: NDArray[Any], rate: int) -> NDArray[np.float64]:
    """Log-mel bands of a sound ``[bands, frames]``."""
    from scipy.signal import stft

    size = max(int(0.032 * rate), 2)
    sound = np.pad(sound, (0, max(0, 2 * size - len(sound))))
    _, _, spectrum = stft(sound, rate, nperseg=size, noverlap=size // 2)
    return np.log(_mel_filters(size // 2 + 1, rate) @ np.abs(spectrum) ** 2 + 1e-8)


def _mel_filters(bins: int, rate: int) -> NDArray[np.float64]:
    """Triangular bands, equally wide on the mel scale ``[bands, bins]``."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MEL_BANDS + 2) / 2595) - 1)
    places = np.linspace(0, rate / 2, bins)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (places - low) / (middle - low), (high - places) / (high - middle)
    return np.clip(np.minimum(rising, falling), 0, None)


def _texts(data: Dataset, split: str) -> Iterator[str]:
    """Yield the texts of a split."""
    source = data.splits[split]
    for index in range(len(source)):
        raw = np.asarray(source.read(index)["bytes"], np.uint8)
        yield raw.tobytes().decode("utf-8", "replace")


def _batches(data: Dataset, split: str, name: str, **sizes: int) -> NDArray[Any]:
    """Return one modality of a whole split, fitted to some size."""
    specs = data.specs(modalities=[name], overrides={name: sizes} if sizes else None)
    loader = make_eval_loader(data.splits[split], specs, batch_size=64)
    return np.concatenate([batch.inputs[name].numpy() for batch in loader])


def _fit_and_test(data: Dataset, features: dict[str, Any], machines: list[Any]) -> float:
    """Fit on train, choose on val where there is a choice, and return the accuracy on test."""
    labels = {split: _labels(data, split) for split in features}
    best, best_score = machines[0], -1.0
    for machine in machines if len(machines) > 1 else ():
        copied: Any = clone(machine)
        fitted = copied.fit(features["train"], labels["train"])
        score = accuracy_score(labels["val"], fitted.predict(features["val"]))
        if score > best_score:
            best, best_score = machine, score
    best.fit(features["train"], labels["train"])
    return float(accuracy_score(labels["test"], best.predict(features["test"])))


def _flat(features: dict[str, NDArray[Any]]) -> dict[str, Features]:
    return {s: x.reshape(len(x), -1).astype(np.float32) for s, x in features.items()}


def _labels(data: Dataset, split: str) -> NDArray[np.int64]:
    labels = data.splits[split].labels
    assert labels is not None
    return labels


def _splits(data: Dataset) -> list[str]:
    return [split for split in ("train", "val", "test") if split in data.splits]


BASELINES: dict[str, Callable[[Dataset], float]] = {
    "majority": majority,
    "random forest on pixels": pixels,
    "random forest on whole pictures": whole_pixels,
    "SVM on log-mel": log_mel,
    "SVM on averaged log-mel": log_mel_means,
    "k-NN on log-mel": log_mel_neighbours,
    "SVM on frame changes": frame_changes,
    "random forest on occupancy": occupancy,
    "SVM on character n-grams": ngrams,
    "logistic regression on words": word_regression,
    "most common class": most_common_pixel,
    "random forest on place and colour": place_and_colour,
    "most common class of points": most_common_point,
    "height above the lowest point around": height_above_lowest,
    "byte frequencies": partial(byte_ngrams, order=1),
    "byte trigrams": partial(byte_ngrams, order=3),
    "byte 5-grams": partial(byte_ngrams, order=5),
    "no motion": no_motion,
    "least squares (Lucas and Kanade)": least_squares_motion,
}

# These answer what the masks of a finished run ask.
OF_RUNS: dict[str, Callable[[Path, str], float]] = {"mean film": mean_film}
