"""What is proved on real data: one row per set, its recipes, its figure and its classical answers.

Folders are named as in docs/results.md, below the folder that --data-root gives.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One training command: a packaged recipe, and what is said beside it."""

    recipe: str
    verb: str = "train"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One set, one model.

    Attributes:
        name: Of the row, and of its files.
        title: Of the set, in the table.
        model: What is trained, in the table.
        folder: The data below the root.
        stages: Training commands; each but the first starts from the one before.
        metric: The figure of ``perceivers evaluate`` that is reported.
        baselines: Which of ``proof_baselines.BASELINES`` answer the same question.
        unit: ``%`` shows a share in percent; others are shown after the figure.
        higher_is_better: The figure's direction.
        seeds: One run for each.
        split: Which split the figure is of.
        trained_on: The data of training, below the root, where they are others than the tested.
        run_of: The row whose runs are tested; its own when empty.
        warped: Photographs, of which frame pairs are generated, are trained on.
        labels: Label columns of the baselines.
        views: Clips per sample whose answers are averaged.
        reported: Baselines on the same splits as those who prepared the data measured them, in the
            digits they give.
    """

    name: str
    title: str
    model: str
    folder: str
    stages: tuple[Stage, ...]
    metric: str = "top1"
    baselines: tuple[str, ...] = ("majority",)
    unit: str = "%"
    higher_is_better: bool = True
    seeds: tuple[int, ...] = (0,)
    split: str = "test"
    trained_on: str = ""
    run_of: str = ""
    warped: bool = False
    labels: tuple[str, ...] = ()
    views: int = 1
    reported: tuple[tuple[str, float], ...] = ()


PICTURES = ("majority", "random forest on pixels", "random forest on whole pictures")
MEL = ("majority", "k-NN on log-mel", "SVM on log-mel", "SVM on averaged log-mel")
WORDS = ("majority", "logistic regression on words", "SVM on character n-grams")
NGRAMS = ("byte frequencies", "byte trigrams", "byte 5-grams")
MOTION = ("no motion", "least squares (Lucas and Kanade)")
SHORT = ("--steps", "10000", "--inputs", '{"bytes": {"length": 128}}')
GRID_OPTIONS = (
    *("--modalities", '["audio"]', "--steps", "2000"),
    *("--inputs", '{"audio": {"samples": 24320, "sample_rate": 8000}}'),
)


def classified_texts(name: str, title: str, *options: str) -> Row:
    """A row of short texts and their classes."""
    stage = Stage("texts.yaml", options=options)
    return Row(name, title, "Hiera on bytes", f"text/{name}", (stage,), baselines=WORDS)


def hidden_bytes(name: str, title: str, split: str) -> Row:
    """A row of a book's bytes, of which whole words are hidden."""
    return Row(
        name,
        title,
        "Perceiver IO on bytes",
        f"text/{name}",
        (Stage("masked_bytes.yaml", "pretrain", ("--steps", "1200")),),
        metric="bits_per_byte",
        baselines=NGRAMS,
        unit="bits",
        higher_is_better=False,
        split=split,
    )


def motion(name: str, title: str, folder: str, trained_on: str = "", run_of: str = "") -> Row:
    """A row of frame pairs whose flow is known; the model has seen generated ones alone."""
    return Row(
        name,
        title,
        "Perceiver IO",
        folder,
        (Stage("optical_flow.yaml"),),
        metric="epe",
        baselines=MOTION,
        unit="pixels",
        higher_is_better=False,
        trained_on=trained_on,
        run_of=run_of,
        warped=True,
    )


ROWS = (
    Row(
        "trashnet",
        "TrashNet photographs, 6 classes",
        "Hiera",
        "images/trashnet-256",
        (
            Stage("nano_photographs.yaml", "pretrain"),
            Stage("nano_photograph_finetuning.yaml", "finetune"),
        ),
        baselines=PICTURES,
        reported=(("random forest", 0.70),),
    ),
    Row(
        "trashnet_hip",
        "the same photographs",
        "HiP on raw pixels",
        "images/trashnet-256",
        (
            Stage("hip_photographs.yaml", "pretrain"),
            Stage("hip_photograph_finetuning.yaml", "finetune"),
        ),
        baselines=PICTURES,
        reported=(("random forest", 0.70),),
    ),
    Row(
        "fsdd",
        "FSDD spoken digits, 10 classes",
        "Hiera on raw sound",
        "audio/fsdd",
        (Stage("spoken_words.yaml"),),
        baselines=MEL,
    ),
    Row(
        "esc10",
        "ESC-10 sounds, 10 classes",
        "Hiera on raw sound",
        "audio/esc10",
        (Stage("sounds.yaml"),),
        baselines=MEL,
        reported=(("SVM on log-mel", 0.77),),
        views=5,
    ),
    Row(
        "omniglot",
        "Omniglot strokes, 8 alphabets",
        "Perceiver",
        "points/omniglot-strokes",
        (Stage("point_clouds.yaml", options=("--labels", '["alphabet"]')),),
        baselines=("majority", "random forest on occupancy"),
        labels=("alphabet",),
    ),
    classified_texts("dbpedia14-small", "DBpedia sentences, 14 topics"),
    classified_texts("banking77", "Banking77 questions, 77 intents", *SHORT),
    classified_texts("clinc150", "CLINC150 requests, 150 intents and none", *SHORT),
    hidden_bytes("tinyshakespeare", "Shakespeare, hidden words byte by byte", "test"),
    hidden_bytes("books", "Three books, their last tenths, as above", "val"),
    Row(
        "camvid",
        "CamVid streets, 11 classes of pixels",
        "Hiera",
        "segmentation/camvid",
        (Stage("segmentation.yaml"),),
        metric="miou",
        baselines=("most common class", "random forest on place and colour"),
    ),
    Row(
        "grid",
        "GRID sentences, first of four words",
        "Hiera on raw sound",
        "av/grid-s1",
        (Stage("spoken_words.yaml", options=GRID_OPTIONS),),
        baselines=(*MEL, "SVM on frame changes"),
        reported=(("SVM on log-mel", 0.91), ("SVM on frame differences", 0.43)),
    ),
    Row(
        "terrain",
        "ISPRS terrain, ground or object of every point",
        "Perceiver IO on points",
        "points/isprs-terrain",
        (Stage("point_segmentation.yaml"),),
        metric="miou",
        baselines=("most common class of points", "height above the lowest point around"),
    ),
    Row(
        "grid_clips",
        "GRID films, hidden parts of 2 frames",
        "Hiera",
        "av/grid-s1",
        (Stage("masked_clips.yaml", "pretrain"),),
        metric="loss",
        baselines=("mean film",),
        unit="of a part's variance",
        higher_is_better=False,
    ),
    motion("warps", "TrashNet photographs that move", "images/trashnet-256"),
    motion(
        "flow",
        "RubberWhale and FlyingChairs, measured motion",
        "flow",
        trained_on="images/trashnet-256",
        run_of="warps",
    ),
)
