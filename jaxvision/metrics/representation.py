"""Metrics over frozen features: what they are worth for a labelled task, without training the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvision import targets
from jaxvision.config.ranges import Count, CountOrNone, Depth, Positive, Temperature
from jaxvision.task import Batch, Metric


def knn(*, classes: int, k: Count = 20, temperature: Temperature = 0.07) -> Metric:
    """`knn`: top-1 of a weighted vote of the k nearest labelled images; `feature_std`, `effective_rank`: see `spread`.

    Needs a `bank`, the labelled images (evals.NAME.bank), whose features are kept in memory: 4 bytes a value. Nearness
    is the cosine; a neighbour counts exp(cosine / temperature) for its class. With a smaller bank all of it votes.
    Equal votes go to the lower class. Images whose features are not finite are nobody's neighbours, and wrong.

    Source: Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4; k and temperature as DINO has them.
    Raises ValueError for k below 1 or a temperature that is not positive.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"knn: k must be at least 1 and temperature positive, got {k} and {temperature}")

    def finish(rows: dict[str, np.ndarray], bank: dict[str, np.ndarray]) -> dict[str, float]:
        known, query = unit(bank["features"]), unit(rows["features"])
        nearest = min(k, len(known))
        right = 0
        for start in range(0, len(query), 1024):
            part = slice(start, start + 1024)
            cosine = np.nan_to_num(query[part] @ known.T, nan=-np.inf)
            chosen = np.argpartition(-cosine, nearest - 1, axis=1)[:, :nearest]
            weight = votes_of(np.take_along_axis(cosine, chosen, 1), temperature)
            votes = np.zeros((len(weight), classes))
            np.add.at(votes, (np.arange(len(weight))[:, None], bank["label"][chosen]), weight)
            right += int(np.sum((np.argmax(votes, 1) == rows["label"][part]) & votes.any(1)))
        return {"knn": right / len(query), **spread(rows["features"])}

    names = ("knn", "feature_std", "effective_rank")
    return _of_features(finish, names, _check_bank)


def probe(*, classes: int, strength: Positive = 1.0, per_class: CountOrNone = 0, seeds: Depth = 5) -> Metric:
    """`probe`: top-1 of a linear classifier on the frozen features, fitted to those of the `bank` (evals.NAME.bank).

    Multinomial logistic regression by scikit-learn's L-BFGS on features scaled to mean 0 and variance 1 over the bank
    (one that does not vary becomes 0); `strength` is its C. A full fit to ImageNet takes hours: give a part of it as
    the bank (`?split=`), or train task `linear_probe`. With `per_class`, fitted to so many images of each class, drawn
    anew for each of `seeds` draws: `probe` is the mean and `probe_spread` the standard deviation over the draws.

    Raises ValueError for a strength that is not positive, or per_class or seeds out of range.
    """
    if strength <= 0 or per_class < 0 or seeds < 1:
        raise ValueError(f"probe: needs strength > 0, per_class >= 0, seeds >= 1, got {strength}, {per_class}, {seeds}")

    def finish(rows: dict[str, np.ndarray], bank: dict[str, np.ndarray]) -> dict[str, float]:
        if not per_class:
            return {"probe": linear_top1(bank["features"], bank["label"], rows["features"], rows["label"], strength)}
        scores = []
        for seed in range(seeds):
            chosen = few(bank["label"], per_class, seed)
            scores.append(
                linear_top1(bank["features"][chosen], bank["label"][chosen], rows["features"], rows["label"], strength)
            )
        return {"probe": float(np.mean(scores)), "probe_spread": float(np.std(scores, ddof=min(1, seeds - 1)))}

    def check(labels: np.ndarray) -> None:
        _check_bank(labels)
        few(labels, per_class, 0)

    names = ("probe", *(("probe_spread",) if per_class else ()))
    return _of_features(finish, names, check)


def _of_features(finish: Callable[..., dict[str, float]], names: tuple[str, ...], check: Callable) -> Metric:
    """A metric of the features and labels of all rows, and of a bank's."""
    return Metric(
        _rows, finish, gather=True, bank="bank", draw=scatter, names=names, check=check,
        compares=targets.class_, of_features=True,
    )  # fmt: skip


def votes_of(cosine: np.ndarray, temperature: float) -> np.ndarray:
    """exp(cosine / temperature) of float[N, k], each row over that of its largest: float64[N, k].

    A vote is not changed by a factor of the row, and no temperature is then too small for the exponential. A cosine of
    -inf counts 0.
    """
    largest = np.maximum(cosine.max(1, keepdims=True), -1.0)
    return np.exp((cosine.astype(np.float64) - largest) / temperature)


def _rows(predictions: dict[str, Any], batch: Batch) -> dict[str, Any]:
    return {"features": predictions["features"].astype(jnp.float32), "label": batch["label"]}


def _check_bank(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        raise ValueError(f"the {len(labels)} images of the bank are of one class: it needs at least two")


def few(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Places of `per_class` samples of each class, drawn without putting back. Raises ValueError if one has fewer."""
    rng = np.random.default_rng(seed)
    chosen = []
    for c in np.unique(labels):
        places = np.flatnonzero(labels == c)
        if len(places) < per_class:
            raise ValueError(f"probe: class {c} of the bank has {len(places)} images, per_class is {per_class}")
        chosen.append(rng.permutation(places)[:per_class])
    return np.sort(np.concatenate(chosen))


def linear_top1(
    features: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, strength: float = 1.0
) -> float:
    """Top-1 on (`test`, `truth`) of logistic regression fitted to (`features`, `labels`), see `probe`.

    NaN where a value of `features` is not finite; a row of `test` that is not counts as wrong. Fitted to one class it
    predicts that.
    """
    from sklearn.linear_model import LogisticRegression

    features, test = np.asarray(features, np.float64), np.asarray(test, np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    finite = np.isfinite(test).all(1)
    if (labels == labels[0]).all():
        return float(np.mean((truth == labels[0]) & finite))
    mean, std = features.mean(0), features.std(0)
    varies = std > 1e-6 * np.abs(mean)  # below is the rounding of float32
    std = np.where(varies, std, 1.0)
    model = LogisticRegression(C=strength, max_iter=2000).fit((features - mean) / std, labels)
    found = model.predict((np.where(finite[:, None], test, mean) - mean) / std)
    return float(np.mean((found == truth) & finite))


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays, one with a value that is not finite is NaN."""
    x = np.asarray(x, np.float32)
    x = np.where(np.isfinite(x).all(1, keepdims=True), x, np.nan)
    largest = np.max(np.abs(x), axis=1, keepdims=True)  # over it first: squares leave the range of float32
    x = x / np.where(largest > 0, largest, 1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)


def spread(features: np.ndarray) -> dict[str, float]:
    """`feature_std`: standard deviation of the rows at length 1, mean over the D dimensions, times sqrt(D): 0 if all
    are the same. `effective_rank`: exp of the entropy of the covariance's singular values, over all 1 .. D; in a
    training log `participation_ratio` measures the same otherwise (`tasks.encoder.spread`). Both are NaN where a value
    is not finite.

    Source: Roy and Vetterli 2007, "The effective rank"; Garrido et al. 2022 (RankMe), https://arxiv.org/abs/2210.02885.
    """
    rows = unit(features).astype(np.float64)
    if not np.isfinite(rows).all():
        return {"feature_std": float("nan"), "effective_rank": float("nan")}
    centred = rows - rows.mean(0)
    values = np.maximum(np.linalg.eigvalsh(centred.T @ centred / len(rows)), 0)
    share = np.sqrt(values) / max(np.sqrt(values).sum(), 1e-12)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-12)))
    std = np.sqrt(np.mean(centred**2, 0)).mean() * np.sqrt(rows.shape[1])
    return {"feature_std": float(std), "effective_rank": float(np.exp(entropy))}


def scatter(axes: Any, rows: dict[str, np.ndarray], bank: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    """The features on their first two principal components, coloured by class; at most 2,000 of them, evenly taken."""
    import matplotlib

    chosen = np.unique(np.linspace(0, len(rows["label"]) - 1, 2000).astype(int))
    features, label = unit(rows["features"][chosen]), rows["label"][chosen]
    centred = features - features.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    place = centred @ directions[:2].T
    explained = values[:2] ** 2 / max(float(np.sum(values**2)), 1e-12)
    shown = min(len(classes), 20)  # more have no colour of their own
    for c in range(shown):  # ten colours as discs, then their pale kin as triangles
        pale, strong = divmod(c, 10)
        colour = matplotlib.colormaps["tab20"](2 * strong + pale)
        axes.scatter(*place[label == c].T, s=9, color=[colour], marker="o^"[pale], label=classes[c], linewidths=0)
    if shown < len(classes):
        axes.scatter(
            *place[label >= shown].T, s=4, color="grey", alpha=0.4, label=f"{len(classes) - shown} more", zorder=0
        )
    axes.set(xlabel=f"first component, {explained[0]:.0%}", ylabel=f"second, {explained[-1]:.0%}")
    axes.legend(fontsize=7, markerscale=2, ncols=2)
