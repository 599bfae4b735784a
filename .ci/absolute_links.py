"""Prepares a tree for a release: README's links lead to the repository, and the metadata name it.

``python absolute_links.py TREE REPOSITORY TAG``
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def absolute(text: str, repository: str, tag: str) -> str:
    """Markdown with relative links and pictures made absolute."""
    pictures = rf"\g<1>{repository}/raw/{tag}/\g<2>"
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)([^)]*)", pictures, text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)([^)]*)", rf"\g<1>{repository}/blob/{tag}/\g<2>", text)


def main(tree: Path, repository: str, tag: str) -> None:
    """Rewrites README.md and setup.cfg."""
    readme, config = tree / "README.md", tree / "setup.cfg"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), repository, tag), encoding="utf-8")
    links = f"url = {repository}\nproject_urls =\n    Documentation = {repository}/tree/{tag}/docs\n"
    links += f"    Changelog = {repository}/blob/{tag}/CHANGELOG.md\n"
    config.write_text(config.read_text().replace("\n[options]\n", f"{links}\n[options]\n", 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].rstrip("/"), sys.argv[3])
