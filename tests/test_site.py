"""The documentation as a site: it builds without a warning, needs no other server, and shows every public name."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import deformreg

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="pip install -e .[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return folder


def public_names(module=deformreg):
    """The names that a package lists and those that its public modules define."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if not isinstance(value, ModuleType) and module is not deformreg:
            yield f"{module.__name__}.{name}"
    for found in pkgutil.iter_modules(module.__path__):
        if found.name.startswith("_"):
            continue
        path = f"{module.__name__}.{found.name}"
        part = importlib.import_module(path)
        if found.ispkg:
            yield from public_names(part)
        elif found.name in module.__all__ and isinstance(getattr(module, found.name), ModuleType):
            for name, value in vars(part).items():
                own = getattr(value, "__module__", None) == path and not name.startswith("_")
                if own and (inspect.isfunction(value) or inspect.isclass(value)):
                    yield f"{path}.{name}"


def test_every_public_name_is_in_the_reference(site):
    shown = {name for page in site.glob("api/*.html") for name in re.findall(r'id="([\w.]+)"', page.read_text())}
    names = set(public_names())
    assert {"deformreg.penalties.gradient_penalty", "deformreg.attacks.pgd", "deformreg.balls.linf"} < names
    assert len(names) > 120
    assert names <= shown, sorted(names - shown)


def test_examples_of_the_reference_are_code(site):
    text = (site / "api" / "penalties.html").read_text()
    assert "&gt;&gt;&gt; " in re.sub(r"<[^>]*>", "", text)
    assert "<blockquote>" not in text


def test_nothing_is_fetched_from_another_server(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link rel="(?:stylesheet|icon)")[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not fetched, page.name
