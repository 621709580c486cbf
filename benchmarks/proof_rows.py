"""What is proved on real data: one row per set, its recipes, its figure and its classical answers.

Folders are named as in docs/datasets.md, below the folder that --data-root gives.
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
        prefix: Put before the address.
        labels: Label columns of the baselines.
        views: Arguments of ``perceivers evaluate`` that say how a sample is seen.
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
    prefix: str = ""
    labels: tuple[str, ...] = ()
    views: tuple[str, ...] = ()


MEL = ("majority", "k-NN on log-mel", "SVM on log-mel")
WORDS = ("majority", "logistic regression on words", "SVM on character n-grams")
SHORT = ("--steps", "2000", "--inputs", '{"bytes": {"length": 128}}')
GRID_OPTIONS = (
    *("--modalities", '["audio"]', "--steps", "900"),
    *("--inputs", '{"audio": {"samples": 24320, "sample_rate": 8000}}'),
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
        baselines=("majority", "random forest on pixels"),
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
        views=("--temporal_views", "5"),
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
    Row(
        "dbpedia",
        "DBpedia sentences, 14 topics",
        "Hiera on bytes",
        "text/dbpedia14-small",
        (Stage("texts.yaml"),),
        baselines=WORDS,
    ),
    Row(
        "banking77",
        "Banking77 questions, 77 intents",
        "Hiera on bytes",
        "text/banking77",
        (Stage("texts.yaml", options=SHORT),),
        baselines=WORDS,
    ),
    Row(
        "clinc150",
        "CLINC150 requests, 150 intents and none",
        "Hiera on bytes",
        "text/clinc150",
        (Stage("texts.yaml", options=SHORT),),
        baselines=WORDS,
    ),
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
)
