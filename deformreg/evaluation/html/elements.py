"""Elements of HTML: whatever is not an element is text, and is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, NamedTuple

_VOID = frozenset({"img", "input", "path", "polygon"})


_SPACES = "\n\N{NO-BREAK SPACE}"


class Html(str):
    """Text that is HTML already."""


class Section(NamedTuple):
    """A part of a page.

    Attributes:
        title: its heading.
        body: what follows the heading.
    """

    title: str
    body: Html


def element(tag: str, *children: object, **attributes: Any) -> Html:
    """Makes an element. Attributes are escaped, and children unless they are `Html`; None is left out.

    Attributes are named as in HTML, with `_` for `-`; a trailing `_` is dropped, so that ``class_`` can be given.
    True is an attribute without a value; False and None leave it out.
    """
    given = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Html(f"<{tag}{given}/>")
    return Html(f"<{tag}{given}>{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Puts elements and texts one after the other; None is left out."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children if child is not None))


def escape(value: object) -> str:
    """The text of a value, without markup: names of runs and classes may hold anything.

    Control characters, what is no text, and characters that reverse the direction of others are written as escapes.
    """
    text = str(value)
    if text.isprintable():
        return html.escape(text)
    shown = "".join(
        character if character.isprintable() or character in _SPACES else character.encode("unicode_escape").decode()
        for character in text
    )
    return html.escape(shown)


def table(header: Iterable[object], rows: Iterable[Iterable[object]], *, caption: object = None) -> Html:
    """A table whose first column names the rows. It scrolls where the screen is narrow."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    title = None if caption is None else element("caption", caption)
    whole = element("table", title, element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption or "Table")


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def swatch(number: int) -> Html:
    """The mark of a run's colour and line."""
    return element("span", class_=f"swatch run-{number % COLORS}", aria_hidden="true")


COLORS = 6
"""Runs that the style gives colours of their own."""
