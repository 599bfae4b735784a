"""What the site takes from elsewhere: the API pages from `deformreg`, a page for each example, CONTRIBUTING.md."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]

API = {
    "penalties": ("Penalties", "penalties"),
    "perturbations": ("Perturbations", "perturbations"),
    "balls": ("Balls", "balls"),
    "warping": ("Warps and fields", "warping", "fields"),
    "losses": ("Losses and noise", "losses", "noise"),
    "criteria": ("Criteria", "criteria", "label_maps"),
    "attacks": ("Attacks", "attacks", "attacks.search"),
    "evaluation": (
        "Evaluation", "evaluation", "evaluation.suites", "evaluation.reports", "evaluation.pictures",
        "evaluation.stability", "evaluation.flags",
    ),
    "certification": ("Certification", "certification", "certification.laws"),
    "bounds": ("Bounds and statistics", "bounds", "statistics"),
    "interop": ("Models of other frameworks", "interop"),
    "released": ("The authors' code", "released"),
    "testing": ("Laws for your own parts", "testing"),
}  # fmt: skip
"""By the page's name: its title and its modules."""


class ExamplesAsCode(griffe.Extension):
    """Shows `Example:` as the section that griffe calls `Examples:`; it would take the prompts for quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    pages = {f"api/{name}.md": _api_page(title, modules) for name, (title, *modules) in API.items()}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        pages[name.lower()] = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for path in sorted((ROOT / "examples").glob("*.py")):
        pages[f"examples/{path.stem}.md"] = f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"
    files.append(File.generated(config, "examples/quickstart.ipynb", abs_src_path=f"{ROOT}/examples/quickstart.ipynb"))
    for name, text in pages.items():
        inclusion = InclusionLevel.NOT_IN_NAV if name.startswith("examples/") else InclusionLevel.INCLUDED
        files.append(File.generated(config, name, content=text, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links to files beside `docs` into links to their pages."""
    markdown = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)
    markdown = markdown.replace("](../examples/quickstart.ipynb)", "](examples/quickstart.ipynb)")
    return re.sub(r"\]\(\.\./(CONTRIBUTING|CHANGELOG)\.md", lambda found: f"]({found[1].lower()}.md", markdown)


def _api_page(title: str, modules: list[str]) -> str:
    return f"# {title}\n\n" + "\n".join(_api_module(f"deformreg.{name}") for name in modules)


def _api_module(path: str) -> str:
    """The directives for a module: for a package one for each name that it lists."""
    module = importlib.import_module(path)
    if not hasattr(module, "__all__"):
        return f"::: {path}\n"
    lines = [f"::: {path}\n    options:\n      members: false\n"]
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            continue  # has its own place in `API`
        # Where a module has the name of its function, the directive needs both.
        file = f"{name}.{name}" if (Path(module.__path__[0]) / f"{name}.py").exists() else name
        lines += [f'<a id="{path}.{name}"></a>\n'] if file != name else []
        lines.append(f"::: {path}.{file}\n    options:\n      heading: {path}.{name}\n      heading_level: 3\n")
    return "\n".join(lines)
