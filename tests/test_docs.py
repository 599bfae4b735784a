"""The Python blocks of README and the pages run, in order, and their commands can be given.

Pages with tests of their own are left out.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

from train import options
from train.commands import COMMANDS, certify, evaluate, export, fit, verify
from train.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
TESTED_APART = {"library.md", "models.md"}


# What a reader of the page has already.
READERS_OWN = {
    "attacks.md": """
import jax, jax.numpy as jnp, numpy as np
import deformreg
labels, key, attacks = np.array([0, 1]), jax.random.key(0), [deformreg.attacks.random_fields(ball=deformreg.linf(0.5))]
logits_fn = lambda images: images.mean(axis=(1, 2))
read = lambda indices: np.full((len(indices), 32, 32, 3), 0.5, np.float32)
""",
    "certification.md": """
import jax.numpy as jnp
images, labels = jnp.ones((2, 4, 4, 1)), jnp.array([0, 1])
logits_fn = lambda images: images.mean(axis=(1, 2)) * jnp.array([[1.0, 2.0]])
""",
    "choose.md": """
import json
from pathlib import Path
for seed, accuracy in enumerate((0.5, 0.75, 1.0)):
    folder = Path(f"runs/seeds/flow-{seed}")
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"robust_accuracy": accuracy}))
""",
    "criteria.md": """
import jax, jax.numpy as jnp
images, label_maps, key = jnp.ones((2, 4, 4, 1)), jnp.ones((2, 4, 4), int), jax.random.key(0)
model = lambda images: images * jnp.array([1.0, 2.0])
""",
    "photographs.md": """
import shutil
from pathlib import Path
from data_files import write_folder
from train import Config, fit
from train.config import Data, Model
write_folder(Path("photos"), sizes=((20, 30), (24, 20)))
shutil.copy("photos/test/cat/0.png", "new.jpg")
data = Data(name="folder:photos", image_size=8, center_crop=0.875)
fit(Config(data=data, model=Model(width=0.1), batch_size=4, epochs=1, devices=1), "runs/photos-flow")
""",
}


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [path for path in PAGES if blocks(path) and path.name not in TESTED_APART], ids=lambda path: path.name
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(READERS_OWN.get(page.name, ""), namespace)
    for number, block in enumerate(blocks(page), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in names, f"{target}#{anchor}"


def test_the_page_of_the_methods_has_their_passes():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("| `--method` | trains on |")
    stated = dict(re.findall(r"^\| `([^`]+)` \|.*\| ([\d.]+) \|$", rest.partition("\n\n")[0], re.MULTILINE))
    assert stated == {name: f"{kind().make().passes:g}" for name, kind in METHODS.items() if name != "given"}


COMMAND = re.compile(r"python -m train (\w+)((?:[^\n|&;\"#\\]|\\\n|\"[^\"\n]*\")*)")
OPTIONS = {
    "evaluate": evaluate.Evaluate,
    "certify": certify.Certify,
    "export": export.Export,
    "verify": verify.Verify,
}


def commands():
    """The commands in the pages' shell blocks, by the command's name: its arguments, a placeholder made a preset."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for name, rest in COMMAND.findall(block):
                yield name, shlex.split(rest.replace("\\\n", " ").replace("PRESET", "digits-flow"))


@pytest.mark.slow
def test_the_commands_of_the_pages_can_be_given():
    found = {(name, *arguments) for name, arguments in commands()}
    assert len(found) > 25
    for name, *arguments in sorted(found):
        if name == "launch":
            assert "fit" in arguments
            name, *arguments = arguments[arguments.index("fit") :]
        if name == "fit" and not arguments[0].startswith("--") and "--help" not in arguments:
            options.check(fit.parse(arguments[0], arguments[1:]).config)
        elif name in OPTIONS:
            assert tyro.cli(OPTIONS[name], args=arguments)
        else:
            assert name in COMMANDS
