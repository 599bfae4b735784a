"""What every public function of the library keeps to: documentation that runs, names, annotations, imports."""

import ast
import doctest
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import deformreg

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "deformreg").rglob("*.py"))
ABOVE = ("train", "benchmarks", "flax", "optax", "chex", "orbax", "tensorflow", "tensorflow_datasets")


def exported(module):
    """Public objects: those of `__all__`, or else the functions and classes defined here without an underscore."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return {name: getattr(module, name) for name in names}


def public():
    found = {}
    for name, value in exported(deformreg).items():
        members = exported(value) if isinstance(value, ModuleType) else {name: value}
        for member in members.values():
            if inspect.isfunction(member) or inspect.isclass(member):
                found[f"{member.__module__}.{member.__qualname__}"] = member
    return found


FUNCTIONS = {name: value for name, value in public().items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in public().items() if inspect.isclass(value)}
functions = pytest.mark.parametrize("name", FUNCTIONS)
# Functions of a whole evaluation: what they do is shown where one is made, in the example of `deformreg.evaluate`.
OF_EVALUATIONS = ("deformreg.evaluation.flags.", "deformreg.evaluation.diagnosis.", "deformreg.evaluation.reports.")
shown = pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(OF_EVALUATIONS)])


def test_the_public_functions_are_found():
    assert {"deformreg.warping.warp", "deformreg.losses.margin", "deformreg.attacks.gradient.multi_step"} <= set(
        FUNCTIONS
    )
    assert {"deformreg.balls.Ball", "deformreg.perturbations.Perturbation"} <= set(CLASSES)


@functions
def test_functions_document_arguments_and_results(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters
    assert text.split("\n")[0].endswith("."), "the first line is a sentence"
    if parameters:
        assert "Args:" in text
        arguments = text.split("Args:")[1].split("\n\n")[0]
        assert all(f"{parameter}:" in arguments for parameter in parameters)
    assert "Returns:" in text


@shown
def test_functions_have_an_example_that_runs(name):
    function = FUNCTIONS[name]
    assert "Example:" in function.__doc__
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


@pytest.mark.parametrize("name", CLASSES)
def test_classes_document_their_attributes(name):
    text = inspect.getdoc(CLASSES[name])
    fields = getattr(CLASSES[name], "_fields", ())
    assert all(field in text for field in fields) or len(fields) <= 3


def imports(path):
    """The modules that a file imports, in full: ``from deformreg import fields`` is ``deformreg.fields``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_inside_the_library_point_one_way():
    names = {module_name(path) for path in SOURCES if path.name != "__init__.py"}
    graph = {module_name(path): set(imports(path)) & names for path in SOURCES if path.name != "__init__.py"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises on a cycle
    assert len(order) == len(names)
    layers = ("warping", "perturbations", "penalties")
    positions = [order.index(f"deformreg.{layer}") for layer in layers]
    assert positions == sorted(positions)
    for lower in ("warping", "flows", "balls", "losses", "noise", "perturbations", "penalties"):
        assert not any(name.startswith("deformreg.attacks") for name in graph[f"deformreg.{lower}"])


def test_the_library_imports_nothing_from_above():
    for path in SOURCES:
        assert not {name.partition(".")[0] for name in imports(path)} & set(ABOVE), path.name


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_library_after_jax_loads_nothing_heavy():
    code = """
import sys
import jax, jax.numpy, jaxtyping, numpy
before = set(sys.modules)
import deformreg
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    loaded = set(run_python(code).split()) - set(sys.stdlib_module_names)
    assert loaded <= {"deformreg", "jax", "jaxlib", "jaxtyping", "numpy"}


@pytest.mark.slow
def test_annotations_are_true_under_beartype():
    """Traced, not run: shapes and types are what the annotations speak of."""
    code = """
from jaxtyping import install_import_hook
core = "warping flows balls losses noise perturbations penalties attacks.ascent attacks.gradient smoothing".split()
with install_import_hook([f"deformreg.{name}" for name in core], "beartype.beartype"):
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
trace(d.forward_differences, images)
for function in ("pixels_from_normalized", "normalized_from_pixels", "total_variation", "max_component"):
    trace(getattr(d.fields, function), field)
trace(d.fields.max_displacement, field)
trace(d.fields.mean_displacement, field)
trace(lambda field: d.fields.smooth(d.fields.upsample(field, 10, 8), 1.0), field)
trace(lambda params: d.fields.affine_flow(params, 5, 4), params)
key = jax.random.key(2)
for family in (d.additive(image_range=(0.0, 1.0)), d.flow(units="normalized"), d.affine(), d.lowres_flow(2, sigma=0.5)):
    trace(lambda images: d.gradient_penalty(loss_fn, images, family), images)
    trace(lambda images: d.finite_difference_penalty(loss_fn, images, family), images)
    for ball in (d.linf(0.1), d.l2(jnp.array([0.1, 0.2, 0.3])), d.pixelwise_l2(0.1)):
        options = {"ball": ball, "perturbation": family, "start": "random", "key": key}
        trace(lambda images: d.multi_step(loss_fn, images, num_steps=2, **options), images)
trace(lambda images: d.image_gradients(loss_fn, images), images)
trace(lambda images: d.input_gradient_penalty(loss_fn, images), images)
trace(lambda images: d.flow_gradient_penalty(lambda x: (loss_fn(x), 1), images, has_aux=True), images)
limits, law = jnp.array([0.1, 0.2]), d.noise.gaussian(0.1)
trace(lambda images: d.one_step(loss_fn, images, ball=d.linf(limits), start=law, key=key), images)
trace(lambda images: d.random_start(key, images, noise=0.1), images)
flat = lambda images: images.reshape(len(images), -1)
for smoothing_law in (d.smoothing.gaussian(0.1), d.smoothing.uniform((0.1, 0.2))):
    trace(lambda images: d.smoothed_votes(flat, images, law=smoothing_law, num_samples=5, key=key), images)
d.paper_weight(300.0, batch_size=128, image_size=(32, 32))
try:
    trace(d.warp, images, jax.ShapeDtypeStruct((1, 5, 4, 2), "float32"))
except Exception as error:
    print("enforced", type(error).__name__)
"""
    assert "enforced TypeCheckError" in run_python(code)
