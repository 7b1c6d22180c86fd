"""Pieces of a page: text escaped, tables, charts as SVG, pictures as data URIs.

Charts are SVG written here, not matplotlib's: a hundred times faster, ten times smaller, and they take their colours
from the page, light or dark. `Html` is text that is markup already; whatever else is given is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 360, 230  # of a chart, in units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 42  # room for text of 13 units
COLOURS = 6  # of lines; more lines than that are dashed
LINE_POINTS, CLOUD_POINTS = 400, 1000  # a line, or a cloud, of more is thinned out evenly


class Html(str):
    """Markup."""


def text(value: Any) -> Html:
    """Text escaped for HTML, unless it is markup."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[Any]) -> Html:
    return Html("".join(text(part) for part in parts))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """`<name class="...">content</name>`; `cls` stands for class, an attribute that is None is left out."""
    listed = {key.replace("cls", "class"): value for key, value in attributes.items() if value is not None}
    inside = "".join(f' {key}="{html.escape(str(value))}"' for key, value in listed.items())
    return Html(f"<{name}{inside}>{join(content)}</{name}>")


def number(value: float | None, digits: int = 4) -> str:
    """Four significant figures; a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def share(value: float) -> str:
    """A fraction in 0..1, in per cent."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, sort: bool = False, cls: str = "") -> Html:
    """A table that scrolls by itself where it is wider than the page. `sort`: a click on a column's head sorts.

    A cell that looks like a number stands to the right, unless it is markup.
    """

    def side(value: Any) -> str | None:
        plain = str(value).removesuffix("%").removesuffix(" s").replace(",", "")
        try:
            return "n" if not isinstance(value, Html) and (plain == "-" or math.isfinite(float(plain))) else None
        except ValueError:
            return None

    rows = list(rows)
    body = join(tag("tr", join(tag("td", value, cls=side(value)) for value in row)) for row in rows)
    sides = [side(value) for value in rows[0]] if rows else [None] * len(head)
    header = tag("tr", join(tag("th", name, cls=where) for name, where in zip(head, sides)))
    inner = tag("table", tag("thead", header), tag("tbody", body), cls=" ".join(["sort" if sort else "", cls]).strip())
    return tag("div", inner, cls="scroll")


# --------------------------------------------------------------------------- charts


def limits(values: list[float]) -> tuple[float, float]:
    """Lowest and highest value, (low, high) with low < high; around a constant from 0 on, so that its size is seen."""
    low, high = min(values), max(values)
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return low, high
    return min(0.0, 2 * low), max(0.0, 2 * high) or float(not low)


def named(kind: str) -> str:
    """Name of a kind of record for people: an evaluation's own name, unless that is "train"."""
    name = kind.removeprefix("eval:")
    return kind if name == "train" else name


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= about)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the two, with 2 and 5 times each where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
    return found if len(found) > 1 else ticks(low, high)


def short(value: float) -> str:
    """Number as a tick shows it: 20k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.6g}"


class Axes:
    """Axes of a chart: the place of each value; what is drawn so far is in `parts`."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, log: bool = False, height: int = HEIGHT
    ) -> None:
        self.x, self.log, self.height = x if x[0] < x[1] else (x[0] - 0.5, x[0] + 0.5), log, height
        if log:
            y = (math.log10(y[0]), math.log10(y[1]))
        self.y = y if y[0] < y[1] else (y[0] - 0.5, y[0] + 0.5)
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Place of the point (x, y), in units of the viewBox."""
        y = math.log10(y) if self.log else y
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.height - BOTTOM - up * (self.height - TOP - BOTTOM)

    def grid(self, x_name: str, y_name: str = "") -> None:
        low, high = (10**v if self.log else v for v in self.y)
        for value in log_ticks(low, high) if self.log else ticks(low, high):
            _, y = self.at(self.x[0], value)
            self.parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            self.parts.append(f'<text x="{LEFT - 5}" y="{y + 4.5:.1f}" text-anchor="end">{short(value)}</text>')
        for value in ticks(*self.x):
            x, _ = self.at(value, low)
            self.parts.append(
                f'<text x="{x:.1f}" y="{self.height - BOTTOM + 17}" text-anchor="middle">{short(value)}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(f'<text x="{middle}" y="{self.height - 4}" text-anchor="middle">{text(x_name)}</text>')
        if y_name:
            at = f'transform="translate(12 {self.height / 2 - 10})rotate(-90)"'
            self.parts.append(f'<text {at} text-anchor="middle">{text(y_name)}</text>')

    def svg(self, name: str) -> Html:
        return Html(
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{text(name)}">{"".join(self.parts)}</svg>'
        )


def figure(title: Any, *content: Any) -> Html:
    return tag("figure", tag("figcaption", title), *content)


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    colours: dict[str, int],
    *,
    log: bool = False,
) -> Html:
    """A chart of values over steps, kind of record -> (steps, values), as `log.curves` has them.

    `log`: on a logarithmic axis if all are above 0.
    """
    values = [v for _, ys in series.values() for v in ys]
    steps = [v for xs, _ in series.values() for v in xs]
    low, high = limits(values)
    constant = (low, high) != (min(values), max(values))
    log = log and low > 0
    margin = 0 if log or constant else 0.04 * (high - low)
    axes = Axes((min(0, *steps), max(steps)), (low - margin, high + margin), log=log)
    axes.grid("step")
    names = []
    for kind, (xs, ys) in series.items():
        name, rank = named(kind), colours[kind]
        kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), LINE_POINTS)).round().astype(int))
        points = [axes.at(xs[k], ys[k]) for k in kept]
        colour = f"var(--c{rank % COLOURS})"
        dashes = ";stroke-dasharray:6 3" if rank >= COLOURS else ""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        axes.parts.append(f'<polyline points="{joined}" style="stroke:{colour}{dashes}"/>')
        if len(points) < 40:
            axes.parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" style="fill:{colour}"><title>{text(name)}, step {xs[k]}: '
                f"{number(ys[k])}</title></circle>"
                for (x, y), k in zip(points, kept)
            ]
        names.append(tag("span", tag("i", style=f"background:{colour}"), name, cls="key"))
    return figure(join([tag("b", title), " ", *names]), axes.svg(title))


def reliability(count: np.ndarray, accuracy: np.ndarray, confidence: np.ndarray) -> Html:
    """Accuracy of each bin of confidence as bars, beside the diagonal of perfect calibration; counts over them."""
    bins, height = len(count), 300
    axes = Axes((0, 1), (0, 1.06), height=height)
    axes.grid("probability of the predicted class", "share that is right")
    for k in np.flatnonzero(count):
        x0, y1 = axes.at(k / bins, float(accuracy[k]))
        x1, y0 = axes.at((k + 1) / bins, 0)
        n = int(count[k])
        few = str(n) if n < 1000 else f"{n / 1000:.2g}k" if n < 100_000 else f"{n // 1000}k"  # fits over a bar
        told = f"{n:,} samples, right {accuracy[k]:.1%}, probability {confidence[k]:.1%}"
        axes.parts.append(
            f'<rect class="bar" x="{x0 + 0.7:.1f}" y="{y1:.1f}" width="{x1 - x0 - 1.4:.1f}" height="{y0 - y1:.1f}">'
            f"<title>{told}</title></rect>"
            f'<text class="small middle" x="{(x0 + x1) / 2:.1f}" y="{y1 - 3:.1f}">{few}</text>'
        )
    (x0, y0), (x1, y1) = axes.at(0, 0), axes.at(1, 1)
    axes.parts.append(f'<path class="ideal" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    return axes.svg("reliability diagram")


def cloud(title: str, truth: np.ndarray, predicted: np.ndarray) -> Html:
    """Predicted against true values, [N] each, with the diagonal; NaN and infinities are left out."""
    kept = np.flatnonzero(np.isfinite(truth) & np.isfinite(predicted))
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(len(kept), CLOUD_POINTS)).round().astype(int))]
    if not len(kept):
        return figure(title, tag("p", "no finite value"))
    both = np.concatenate([truth[kept], predicted[kept]])
    low, high = float(both.min()), float(both.max())
    axes = Axes((low, high), (low, high), height=300)
    axes.grid("true", "predicted")
    (x0, y0), (x1, y1) = axes.at(axes.x[0], axes.y[0]), axes.at(axes.x[1], axes.y[1])
    axes.parts.append(f'<path class="ideal" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    for k in kept:
        x, y = axes.at(float(truth[k]), float(predicted[k]))
        axes.parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>')
    return figure(title, axes.svg(title))


def histogram(title: str, values: np.ndarray, bins: int = 31) -> Html:
    """How often values come, [N]; NaN and infinities are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return figure(title, tag("p", "no finite value"))
    count, edges = np.histogram(values, bins)
    axes = Axes((float(edges[0]), float(edges[-1])), (0, float(count.max()) * 1.05), height=300)
    axes.grid("predicted - true", "samples")
    for k in np.flatnonzero(count):
        x0, y1 = axes.at(float(edges[k]), float(count[k]))
        x1, y0 = axes.at(float(edges[k + 1]), 0)
        axes.parts.append(
            f'<rect class="bar" x="{x0:.1f}" y="{y1:.1f}" width="{max(x1 - x0 - 0.6, 0.6):.1f}" height="{y0 - y1:.1f}">'
            f"<title>{number(edges[k])} to {number(edges[k + 1])}: {count[k]:,}</title></rect>"
        )
    return figure(title, axes.svg(title))


def bar(parts: dict[str, float]) -> Html:
    """Shares of a whole side by side, name -> amount."""
    whole = sum(parts.values()) or 1.0
    pieces = [
        tag("span", name if amount > 0.07 * whole else "", cls=f"p{k % 10}", title=f"{name}: {amount / whole:.1%}",
            style=f"width:{100 * amount / whole:.2f}%")
        for k, (name, amount) in enumerate(parts.items()) if amount > 0.001 * whole
    ]  # fmt: skip
    return tag("div", join(pieces), cls="stack")


# --------------------------------------------------------------------------- matrices and pictures

RIGHT_COLOUR, WRONG_COLOUR = (38, 120, 190), (222, 96, 30)


def matrix(counts: np.ndarray, names: Sequence[str]) -> Html:
    """A confusion matrix as a table; a cell is as dark as its share of its row, mistakes darker than that."""
    rows = []
    for i, row in enumerate(counts):
        cells = [tag("th", names[i])]
        for j, n in enumerate(row):
            part = n / max(row.sum(), 1)
            r, g, b = RIGHT_COLOUR if i == j else WRONG_COLOUR
            depth = 0.75 * part if i == j else min(0.2 + 0.7 * part**0.5, 0.8)
            told = f"{names[i]} taken for {names[j]}: {n:,} of {row.sum():,}"
            style = f"background:rgba({r},{g},{b},{depth:.2f})" if n else None
            cells.append(tag("td", f"{n:,}" if n else "·", style=style, title=told))
        rows.append(tag("tr", join(cells)))
    head = tag("tr", tag("th", "true \\ predicted", cls="corner"), join(tag("th", tag("span", n)) for n in names))
    cls = "matrix short" if max(map(len, names)) < 4 else "matrix"
    return tag("div", tag("table", head, join(rows), cls=cls), cls="scroll")


def heat(counts: np.ndarray) -> Html:
    """A matrix as a picture, a pixel a cell: the logarithm of its share of its row, from one in 1,000 on."""
    part = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    depth = np.where(part > 0, np.clip(1 + np.log10(np.maximum(part, 1e-9)) / 3, 0.04, 1), 0.0)
    diagonal = np.eye(len(counts), dtype=bool)[..., None]
    pixels = np.empty((*counts.shape, 4), np.uint8)
    pixels[..., :3] = np.where(diagonal, RIGHT_COLOUR, WRONG_COLOUR)
    pixels[..., 3] = np.round(255 * depth)
    return tag("img", src=data_uri(pixels, "png"), alt="confusion matrix", cls="heat")


def data_uri(pixels: np.ndarray, kind: str, most: int = 0) -> str:
    """uint8 [H, W], or [H, W, C] with 1, 3 or 4 channels, as "png" or "jpeg" within the page, `most` pixels a side."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
    if most:
        image.thumbnail((most, most))
    image.save(file, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(pixels: np.ndarray) -> Html:
    """An image as the network saw it, uint8 [H, W, 1 or 3].

    Small ones are without loss, with their pixels to be seen, others JPEG of at most 256 pixels a side.
    """
    small = max(pixels.shape[:2]) <= 64
    uri = data_uri(pixels, "png") if small else data_uri(pixels, "jpeg", 256)
    return tag("img", src=uri, alt="", cls="pixels" if small else None)
