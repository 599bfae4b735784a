"""Conventions of the code: documentation that runs, names, annotations, and the directions of imports."""

import ast
import doctest
import graphlib
import inspect
import re
import sys
from types import ModuleType

import pytest
from running import ROOT, python

import deformreg


def exported(module):
    """Public objects: those of `__all__`, or else the functions and classes defined here without an underscore."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return [getattr(module, name) for name in names]


def public(module=deformreg):
    found = {}
    for value in exported(module):
        if isinstance(value, ModuleType):
            found |= public(value)
        elif inspect.isfunction(value) or inspect.isclass(value):
            found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


FUNCTIONS = {name: value for name, value in public().items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in public().items() if inspect.isclass(value)}
functions = pytest.mark.parametrize("name", FUNCTIONS)
# Functions of a whole evaluation: the example of `deformreg.evaluate` shows them.
OF_EVALUATIONS = ("deformreg.evaluation.flags.", "deformreg.evaluation.reports.")
shown = pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(OF_EVALUATIONS)])


def test_the_public_functions_are_found():
    assert {"deformreg.warping.warp", "deformreg.losses.margin", "deformreg.attacks.gradient.multi_step"} <= set(
        FUNCTIONS
    )
    assert {"deformreg.balls.Ball", "deformreg.perturbations.perturbation.Perturbation"} <= set(CLASSES)


def described(text, section):
    """The names that a section of a docstring describes, such as ``a`` and ``b`` of ``a, b: this.``"""
    lines = text.partition(f"\n{section}:\n")[2].partition("\n\n")[0]
    return [name for names in re.findall(r"^ {4}(\w+(?:, \w+)*):", lines, re.MULTILINE) for name in names.split(", ")]


@functions
def test_functions_document_arguments_and_results(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    assert text.split("\n")[0].endswith("."), "the first line is a sentence"
    assert sorted(described(text, "Args")) == sorted(inspect.signature(function).parameters)
    assert "\nReturns:\n" in text


def sections_missing(function):
    """Of a docstring that lists arguments or results, the other parts that it should have."""
    text = ast.get_docstring(function) or ""
    listed = (function.args.posonlyargs, function.args.args, function.args.kwonlyargs)
    parameters = [each.arg for group in listed for each in group if each.arg not in ("self", "cls")]
    if "Args:" not in text and "Returns:" not in text:
        return []
    missing = [name for name in parameters if name not in described(text, "Args")]
    gives = function.returns is None or ast.unparse(function.returns) != "None"
    return missing + ["Returns"] * (gives and "Returns:" not in text)


def test_docstrings_with_sections_are_whole_also_where_the_library_does_not_export_them():
    found = {}
    for path in sorted((ROOT / "deformreg").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (missing := sections_missing(node)):
                found[f"{path.relative_to(ROOT)}: {node.name}"] = missing
    assert not found


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('def one(a, *, b) -> int:\n    "Alone."', []),
        ('def one(a, *, b) -> int:\n    "Does.\\n\\nArgs:\\n    a: this."', ["b", "Returns"]),
        ('def one(a) -> int:\n    "Does.\\n\\nReturns:\\n    That."', ["a"]),
        ('def one(self, a) -> None:\n    "Does.\\n\\nArgs:\\n    a: this."', []),
    ],
)
def test_missing_sections_are_found(text, missing):
    assert sections_missing(ast.parse(text).body[0]) == missing


@shown
def test_functions_have_an_example(name):
    assert "Example:" in FUNCTIONS[name].__doc__


LONG = tuple(
    f"deformreg.{part}." for part in ("attacks", "bounds", "certification", "evaluation", "interop", "testing")
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LONG))
        for name in FUNCTIONS
        if not name.startswith(OF_EVALUATIONS)
    ],
)
def test_examples_run(name):
    function = FUNCTIONS[name]
    module = sys.modules[function.__module__]
    (test,) = [t for t in doctest.DocTestFinder(recurse=False).find(function, name, module=module) if t.examples]
    failures = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)


@functions
def test_signatures_are_annotated_with_whole_words(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
        assert parameter.name not in ("x", "eps")


@pytest.mark.parametrize("name", [name for name in CLASSES if not name.endswith(".DifferenceNorms")])  # of two norms
def test_classes_document_their_attributes(name):
    fields = getattr(CLASSES[name], "_fields", ())
    assert set(fields) <= set(described(inspect.getdoc(CLASSES[name]), "Attributes"))


# Imports.

# The modules of the library in the order of their imports: each imports only from those before it.
ROOMS = [
    "_checks", "_arrays", "_programs", "interop", "_interpolation", "_cells", "warping", "fields",
    "perturbations", "_families", "balls", "_displacements", "noise", "losses", "label_maps", "criteria", "attacks",
    "penalties", "testing", "bounds", "statistics", "evaluation", "certification", "released",
]  # fmt: skip
# The other packages that each package may import.
PACKAGES = {
    "deformreg": set(),
    "train": {"deformreg"},
    "benchmarks": {"deformreg", "train"},
    "examples": {"deformreg", "train"},
}
REQUIRED = {"deformreg", "jax", "jaxtyping", "numpy", "scipy"}
OPTIONAL = {
    "deformreg.attacks.stadv": {"optax"},
    "deformreg.evaluation.pictures": {"matplotlib"},
    "deformreg.interop.torch_model": {"torch"},
}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def parents(name):
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def named_in_strings(tree):
    """Modules that strings name, such as ``"train.models:resnet"`` or the start of ``f"train.commands.{name}"``."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            if "." in node.value and node.value.partition(":")[0] in MODULES:
                yield node.value.partition(":")[0]
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            start = node.values[0].value
            if start.endswith("."):  # a registry: any module of the package but its entry point
                members = {name for name in MODULES if not name.endswith(".__main__")}
                yield from (name for name in members if start.removesuffix(".") in parents(name))


def imports(name, path):
    """The modules that a module imports, including those that strings name."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules
            if len(submodules) < len(node.names):
                found.add(node.module)
    found |= set(named_in_strings(tree))
    # Importing a module also runs its parent packages, except those of the importer, which are running already.
    around = {parent for each in found for parent in parents(each)} - parents(name) - {name}
    return found | (around & MODULES.keys())


IMPORTS = {name: imports(name, path) for name, path in MODULES.items()}


def room(name):
    return name.split(".")[1] if "." in name else ""


def test_the_rooms_of_the_library_import_from_those_before_them():
    in_library = {name: found for name, found in IMPORTS.items() if name.startswith("deformreg.")}
    assert {room(name) for name in in_library} == set(ROOMS), "give a new room its place in ROOMS"
    for name, found in in_library.items():
        rooms = {room(other) for other in found & in_library.keys()}
        assert "deformreg" not in found, f"{name} imports from the top level"
        assert rooms <= set(ROOMS[: ROOMS.index(room(name)) + 1]), name


def test_the_library_stands_alone_but_for_what_single_modules_name():
    for name, found in IMPORTS.items():
        if name.partition(".")[0] == "deformreg":
            others = {other.partition(".")[0] for other in found} - REQUIRED - sys.stdlib_module_names
            assert others == OPTIONAL.get(name, set()), name


def test_packages_import_in_one_direction():
    for name, found in IMPORTS.items():
        package = name.partition(".")[0]
        others = {other.partition(".")[0] for other in found} & PACKAGES.keys()
        assert others <= PACKAGES[package] | {package}, name


def test_no_module_imports_itself_through_others():
    graph = {name: found & MODULES.keys() - {name} for name, found in IMPORTS.items()}
    circle = []
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert not circle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import deformreg.fields", {"deformreg.fields", "deformreg"}),
        ("from deformreg import fields, warp", {"deformreg.fields", "deformreg"}),
        ("def late():\n    from train.config import Config", {"train.config", "train"}),
        ("KINDS = {'a': 'train.config:Config'}", {"train.config", "train"}),
        ("import_module(f'deformreg.attacks.{name}')", {"deformreg.attacks.pgd", "deformreg.attacks", "deformreg"}),
        ("'''Documentation of train.config.'''\n'train.config'\n", set()),
    ],
)
def test_imports_are_found(text, expected, tmp_path):
    (tmp_path / "example.py").write_text(text)
    found = imports("example", tmp_path / "example.py")
    assert found >= expected
    assert expected or not found


def test_importing_the_library_after_jax_loads_nothing_heavy():
    code = """
import sys
import jax, jax.numpy, jaxtyping, numpy
before = set(sys.modules)
import deformreg
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    loaded = set(python(code).split()) - set(sys.stdlib_module_names)
    assert loaded <= {"deformreg", "jax", "jaxlib", "jaxtyping", "numpy"}


@pytest.mark.slow
def test_annotations_are_true_under_beartype():
    """Traced instead of run: annotations state shapes and types."""
    code = """
from jaxtyping import install_import_hook
core = "warping fields balls losses noise perturbations penalties attacks.ascent attacks.gradient certification.laws"
with install_import_hook([f"deformreg.{name}" for name in core.split()], "beartype.beartype"):
    import deformreg as d
import jax, jax.numpy as jnp
images, field, params = (jax.ShapeDtypeStruct(s, "float32") for s in ((3, 5, 4, 2), (3, 5, 4, 2), (3, 6)))
labels = jnp.array([0, 1, 2])
logits_fn = lambda images: images.reshape(3, -1)
loss_fn = lambda images: d.losses.cross_entropy(logits_fn(images), labels)
trace = jax.eval_shape
for loss in (d.losses.cross_entropy, d.losses.margin, d.losses.difference_of_logits_ratio):
    trace(lambda images: loss(logits_fn(images), labels), images)
trace(lambda images, field: d.warp(images, field, boundary="reflect"), images, field)
trace(d.warping.forward_differences, images)
for function in ("pixels_from_normalized", "normalized_from_pixels", "total_variation", "max_component"):
    trace(getattr(d.fields, function), field)
trace(d.fields.max_displacement, field)
trace(d.fields.mean_displacement, field)
trace(lambda field: d.fields.smooth(d.fields.upsample(field, 10, 8), 1.0), field)
trace(lambda params: d.fields.affine_flow(params, 5, 4), params)
key = jax.random.key(2)
families = (d.additive(image_range=(0.0, 1.0)), d.flow(units="normalized"), d.affine(), d.lowres_flow(2, sigma=0.5),
            d.perspective(), d.thin_plate_spline(), d.diffeomorphic(2, num_squarings=2))
for family in families:
    trace(lambda images: d.gradient_penalty(loss_fn, images, family), images)
    trace(lambda images: d.finite_difference_penalty(loss_fn, images, family), images)
    trace(lambda images: d.forward_over_reverse_penalty(loss_fn, images, family), images)
    trace(lambda images: d.penalties.curvature_penalty(loss_fn, images, family, ball=d.l2(0.1)), images)
    for penalty in (d.penalties.local_linearity_penalty, d.penalties.linearization_penalty):
        trace(lambda images: penalty(loss_fn, images, family, ball=d.linf(0.1), key=key), images)
    for ball in (d.linf(0.1), d.l2(jnp.array([0.1, 0.2, 0.3])), d.pixelwise_l2(0.1)):
        options = {"ball": ball, "perturbation": family, "start": "random", "key": key}
        trace(lambda images: d.multi_step(loss_fn, images, num_steps=2, **options), images)
trace(lambda images: d.image_gradients(loss_fn, images), images)
trace(lambda images: d.penalties.displacement_penalty(loss_fn, images, 0.5), images)
trace(lambda images: d.gradient_penalty(lambda x: (loss_fn(x), 1), images, has_aux=True), images)
limits, law = jnp.array([0.1, 0.2]), d.noise.gaussian(0.1)
trace(lambda images: d.one_step(loss_fn, images, ball=d.linf(limits), start=law, key=key), images)
trace(lambda images: d.random_start(key, images, noise=0.1), images)
flat = lambda images: images.reshape(len(images), -1)
for smoothing_law in (d.certification.gaussian(0.1), d.certification.uniform((0.1, 0.2))):
    votes = lambda images: d.certification.smoothed_votes(flat, images, law=smoothing_law, num_samples=5, key=key)
    trace(votes, images)
d.released.paper_weight(300.0, batch_size=128, image_size=(32, 32))
try:
    trace(d.warp, images, jax.ShapeDtypeStruct((1, 5, 4, 2), "float32"))
except Exception as error:
    print("enforced", type(error).__name__)
"""
    assert "enforced TypeCheckError" in python(code)
