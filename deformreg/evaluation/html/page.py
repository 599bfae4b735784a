"""Sections as one document that holds its style and script, and whose policy lets nothing be loaded."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

from deformreg.evaluation.html.elements import Html, Section, element, escape

LIMIT = 2_000_000
"""Bytes of a page."""


def page(title: str, lead: Html, sections: Sequence[Section]) -> str:
    """Makes the document.

    Args:
        title: its heading.
        lead: what the reader sees first, below the heading.
        sections: the others, in order; several of them get a list of links.

    Returns:
        The text of the file.
    """
    links = [element("li", element("a", section.title, href=f"#{anchor(section.title)}")) for section in sections]
    bodies = [
        element("section", element("h2", title, id=anchor(title)), body, aria_labelledby=anchor(title))
        for title, body in sections
    ]
    script = _resource("page.js")
    return Template(_resource("page.html")).substitute(
        title=escape(title),
        # Only the script in this file runs, also if a name should ever get past the escaping.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_resource("page.css"),
        lead=lead,
        contents=element("ol", *links),
        sections="\n".join(bodies),
        script=script,
    )


def anchor(title: str) -> str:
    """The address of a section within the page."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


@cache
def _resource(name: str) -> str:
    return (files("deformreg.evaluation.html") / name).read_text(encoding="utf-8")
