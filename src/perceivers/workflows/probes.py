"""What is fitted to frozen features: nearest neighbours and a linear model, chosen on validation.

Fitting is scikit-learn's, figures are torchmetrics'.

Legend: n samples, D width of a feature, T numbers to be predicted.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.errors import ConfigError
from perceivers.tasks.metrics import new_metric

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
METRICS = ("cosine", "euclidean")
# Inverse strengths of logistic regression, and strengths of ridge regression.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
PENALTIES = (1e-2, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
ROUNDS = 300
Kind = Literal["classes", "numbers"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Table:
    """Features ``[n, D]`` and what is to be told from them: ``[n]`` classes or ``[n, T]`` numbers.

    No answer is unknown.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]


@dataclass(frozen=True)
class Fitted:
    """One probe.

    Attributes:
        probe: ``k-NN``, ``linear``, ``majority`` or ``mean``.
        chosen: The settings that did best where they were chosen.
        chosen_figure: The figure that they were chosen by.
        figures: Figures where the probe is reported.
    """

    probe: str
    chosen: Mapping[str, Any]
    chosen_figure: float
    figures: dict[str, float]


def need_sklearn() -> None:
    """Refuse to start where scikit-learn is missing.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "probes are fitted by scikit-learn, which is not installed; run "
            'pip install "perceivers[demo]"'
        ) from error


def fit_probes(fit: Table, choose: Table, report: Table, kind: Kind) -> list[Fitted]:
    """Fit both probes on one part, choose their settings on another, and report on a third.

    Features are standardised by the mean and deviation of the part that is fitted.

    Args:
        fit: What is fitted.
        choose: What settings are chosen on.
        report: What figures are of.
        kind: What is predicted.
    """
    mean, deviation = fit.x.mean(0), fit.x.std(0)
    scale = np.where(deviation > 1e-8, deviation, 1.0).astype(np.float32)
    fit, choose, report = (Table((t.x - mean) / scale, t.y) for t in (fit, choose, report))
    neighbours = _choose(_neighbours(fit, kind), choose, report, kind, "k-NN")
    linear = _choose(_linear(fit, kind), choose, report, kind, "linear")
    return [neighbours, linear]


def fit_floor(fit: Table, choose: Table, report: Table, kind: Kind) -> Fitted:
    """Answer every sample alike: with the most common class, or the mean."""
    constant = np.bincount(fit.y).argmax() if kind == "classes" else fit.y.mean(0)

    def answer(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.repeat(np.asarray(constant)[None], len(x), 0)

    name = "majority" if kind == "classes" else "mean"
    return _choose([({}, answer)], choose, report, kind, name)


Answer = Callable[[NDArray[np.float32]], NDArray[Any]]
Candidate = tuple[Mapping[str, Any], Answer]


def _choose(
    candidates: Sequence[Candidate], choose: Table, report: Table, kind: Kind, probe: str
) -> Fitted:
    """Keep the first of the best."""
    best: tuple[float, Candidate] | None = None
    for candidate in candidates:
        value = figures_of(candidate[1](choose.x), choose.y, kind)[leading(kind)]
        if best is None or value > best[0]:
            best = (value, candidate)
    assert best is not None
    value, (chosen, answer) = best
    return Fitted(probe, chosen, value, figures_of(answer(report.x), report.y, kind))


def leading(kind: Kind) -> str:
    """Return the figure that settings are chosen by."""
    return "accuracy" if kind == "classes" else "r2"


def figures_of(answers: NDArray[Any], truth: NDArray[Any], kind: Kind) -> dict[str, float]:
    """Return accuracy and its mean over the classes there are; or R2, mean over numbers, and MAE.

    Args:
        answers: Classes ``[n]``, or numbers ``[n, T]``.
        truth: As ``answers``.
        kind: What they are.
    """
    given, wanted = torch.from_numpy(np.asarray(answers)), torch.from_numpy(np.asarray(truth))
    if kind == "classes":
        count = int(max(given.max(), wanted.max())) + 1
        figures = {}
        for name, average in (("accuracy", "micro"), ("macro", "macro")):
            metric = new_metric(
                "classification.MulticlassAccuracy", CPU, num_classes=max(count, 2), average=average
            )
            figures[name] = float(metric(given, wanted))
        return figures
    given, wanted = given.double().reshape(len(given), -1), wanted.double().reshape(len(wanted), -1)
    error = float(new_metric("MeanAbsoluteError", CPU)(given, wanted))
    if len(given) < 2:
        return {"r2": float("nan"), "mae": error}
    # Of one number torchmetrics wants one axis.
    pair = (given.squeeze(1), wanted.squeeze(1)) if given.shape[1] == 1 else (given, wanted)
    return {"r2": float(new_metric("R2Score", CPU)(*pair)), "mae": error}


def _neighbours(fit: Table, kind: Kind) -> list[Candidate]:
    """Every number of neighbours that there can be, by angle and by distance."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    model: Any = KNeighborsClassifier if kind == "classes" else KNeighborsRegressor
    return [
        ({"k": k, "metric": metric}, model(k, metric=metric).fit(fit.x, fit.y).predict)
        for metric in METRICS
        for k in NEIGHBOURS
        if k <= len(fit.x)
    ]


def _linear(fit: Table, kind: Kind) -> list[Candidate]:
    """Every strength of regularisation, strongest first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "numbers":
        return [
            ({"alpha": alpha}, Ridge(alpha=alpha).fit(fit.x, fit.y).predict)
            for alpha in reversed(PENALTIES)
        ]
    if len(np.unique(fit.y)) < 2:
        raise ConfigError(
            f"all {len(fit.y)} samples to fit are of one class; a probe needs at least two"
        )
    with warnings.catch_warnings():
        # A fit that was stopped early is a candidate as good as its figure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [
            ({"C": c}, LogisticRegression(C=c, max_iter=ROUNDS).fit(fit.x, fit.y).predict)
            for c in STRENGTHS
        ]
