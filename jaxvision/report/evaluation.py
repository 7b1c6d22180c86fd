"""A section of the page for each evaluation: what it got right and wrong, and pictures of the worst and the best."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvision import targets
from jaxvision.errors import UserError
from jaxvision.report.draw import Html, join, picture, tag

Outcomes = Mapping[str, np.ndarray]


def section(
    name: str,
    certificate: dict[str, Any],
    outcomes: Outcomes | str,
    drawn: bytes,
    sources: Mapping[str, Any],
) -> Html:
    """A section of the page for one evaluation.

    outcomes: the arrays of eval/NAME.npz, or why they cannot be read, "" if there are none. drawn: the PNG of the
    evaluation's metric, if it has one. sources: data that is open already, by URI.
    """
    title = tag("h2", f"Evaluation {name}")
    about = f"{certificate['data']}, {certificate['count']:,} samples, step {certificate['step']:,}"
    parts: list[Any] = [title, tag("p", about, cls="note")]
    if drawn:
        uri = f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
        parts.append(tag("img", src=uri, alt="", cls="drawn"))
    if isinstance(outcomes, str):
        parts.append(tag("p", outcomes, cls="note") if outcomes else "")
        return join(parts)
    if int(outcomes["step"]) != certificate["step"] or str(outcomes["digest"]) != certificate["digest_of_sample_ids"]:
        parts.append(tag("p", f"eval/{name}.npz is of another evaluation than eval/{name}.json: evaluate again, as "
                              "python -m jaxvision.evaluate --from WORKDIR", cls="note"))  # fmt: skip
        return join(parts)
    show = Pictures(certificate, outcomes, sources)
    target = targets.of_rows(outcomes)
    parts += target.section(certificate, outcomes, show) if target else []
    return join(parts)


class Pictures:
    """Samples of an evaluation, as the network saw them."""

    def __init__(self, certificate: dict[str, Any], outcomes: Outcomes, sources: Mapping[str, Any]) -> None:
        self.certificate, self.outcomes, self.sources = certificate, outcomes, sources

    def both(self, by: str, worst: np.ndarray, best: np.ndarray, caption: Callable[[int], Html]) -> list[Html]:
        """Cards of the worst and of the best samples, with their captions.

        Without the data, says why there are none.
        """
        uri = self.certificate["data"]
        try:
            self._open(uri)
            cards = [join(self._card(int(row), caption) for row in rows) for rows in (worst, best)]
        except (UserError, OSError, IndexError, ImportError) as error:
            told = f"No pictures: {uri} is not what was evaluated, or not there any more ({error})"
            return [tag("h3", "Worst and best"), tag("p", told, cls="note")]
        parts = []
        for what, rows, content in (("Worst", worst, cards[0]), ("Best", best, cards[1])):
            if len(rows):
                parts += [tag("h3", f"{what} {len(rows)}, {by}"), tag("div", content, cls="cards")]
        return parts

    def _open(self, uri: str) -> None:
        from jaxvision.data.contract import InputContract
        from jaxvision.data.sources import open_source
        from jaxvision.data.transforms import preprocess

        self.source = self.sources[uri] if uri in self.sources else open_source(uri)
        self.contract = InputContract.from_dict(self.certificate["contract"])
        self.pixels = preprocess(self.contract)

    def _card(self, row: int, caption: Callable[[int], Html]) -> Html:
        """Card of a sample.

        Raises UserError if another sample is in its place now.
        """
        from jaxvision.data.decode import decode
        from jaxvision.errors import Unreadable

        place = int(self.outcomes["place"][row])
        where = self.source.where(place)
        try:
            sample = self.source[place]
            if sample["index"] != self.outcomes["index"][row]:
                raise UserError(f"sample {place} has another id now")
            image = picture(self.pixels(decode(sample["image"], where=where, **self.contract.decoding)))
        except Unreadable as error:
            image = tag("p", f"cannot be read: {error}", cls="wrong")
        return tag("div", image, caption(row), tag("div", last_part(where), cls="file"), cls="card", title=where)


def last_part(where: str) -> str:
    """Short form of a sample's place, for a card: the file's name, or whatever follows the last slash."""
    return where.rpartition("/")[2] or where
