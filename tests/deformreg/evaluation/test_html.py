"""The HTML report: what it holds, that names cannot become markup, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import PROGRAM, browser
from PIL import Image

import deformreg
from deformreg.attacks.attack import Budget
from deformreg.evaluation import AttackOutcome, Curve, Evaluation, Flag, Frames, Spent, frames, reports
from deformreg.evaluation.html import charts, gallery
from deformreg.evaluation.html.elements import Html, element, escape
from deformreg.evaluation.html.page import LIMIT, page

EVIL = '<script>alert(1)</script>"&\u202e\udce9'
NOTHING = np.zeros(0)
FLAG = Flag("zero_gradients", f"The gradient is zero {EVIL}.", {"share": 0.25, "of": EVIL})


def evaluation(accuracy=0.5, flags=(FLAG,), calls=10):
    outcome = AttackOutcome(
        EVIL, accuracy, 9, 4, 4 / 9, 100, 1.0, 2.0, 0.5, Budget(0.5, "linf", "pixels"),
        {"mean_displacement": {"mean": 0.25, "max": 0.5}}, 9.0, 0, True, {}, NOTHING, NOTHING,
    )  # fmt: skip
    return Evaluation(
        10, 0.9, accuracy, (0.2, 0.8), (outcome,), flags, Spent(calls, 1.0, 1.0), 100, 4.0, False, NOTHING, NOTHING
    )


def curve(end=0.1):
    return Curve(10, (0.0, 0.5, 1.0), (0.9, 0.5, end), ((0.8, 1), (0.2, 0.8), (0.0, 0.3)), 0.4, NOTHING, (), 0, 0.0)


def answered(seed=0, count=4, size=6, channels=1, boundary="edge", shares=5):
    """Images with flows and answers that are right until the last."""
    rng = np.random.default_rng(seed)
    predicted = np.zeros((count, shares), int)
    predicted[:, -1] = 1
    confidences = np.linspace(0.9, 0.6, count * shares).reshape(count, shares)
    return Frames(
        np.random.default_rng(7).random((count, size, size, channels)).astype(np.float32), np.zeros(count, int),
        rng.uniform(-1.5, 1.5, (count, size, size, 2)).astype(np.float32), (boundary,) * count,
        np.linspace(0, 1, shares), predicted, confidences, np.where(predicted == 0, confidences, 1 - confidences),
    )  # fmt: skip


def report(*, boundary="edge", names=("standard", EVIL), channels=1):
    return reports.to_html(
        {name: evaluation() for name in names},
        curves={name: curve() for name in names},
        frames={name: answered(number, boundary=boundary, channels=channels) for number, name in enumerate(names)},
        class_names=["cat", EVIL],
    )


class Outline(HTMLParser):
    """Elements and their attributes; fails on elements that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_names_are_text_wherever_they_stand():
    text = report()
    outline = Outline(text)
    assert [tag for tag, _ in outline.found].count("script") == 1
    assert "alert(1)</script>" not in text
    assert "\u202e" not in text
    assert text.encode()  # also what is no text can be written
    assert escape("a\u202eb\udce9\n") == "a\\u202eb\\udce9\n"
    assert element("a", "<", Html("<i/>"), title='"', hidden=True, lang=None) == '<a title="&quot;" hidden>&lt;<i/></a>'


def test_a_page_has_headings_labels_and_texts_for_pictures():
    found = Outline(report()).found
    levels = [int(tag[1]) for tag, _ in found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"][1:] for tag, attributes in found if tag == "a"]
    assert set(targets) <= set(ids)
    for tag, attributes in found:
        assert tag != "img" or attributes["alt"]
        assert tag != "canvas" or attributes["aria-label"]
        assert tag != "input" or attributes["id"] in {each.get("for") for kind, each in found if kind == "label"}


def test_nothing_but_the_pages_own_script_runs_and_nothing_is_loaded():
    text = report()
    policy = next(each["content"] for _, each in Outline(text).found if each.get("http-equiv"))
    script = re.search("<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; ")
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in text


def test_red_flags_are_explained_and_their_absence_is_told_apart_from_no_search():
    def told(**options):
        return reports.to_html({"a": evaluation(**options)})

    assert "The gradient is zero" in told()
    assert "No red flag was raised" in told(flags=())
    assert "No red flag was raised" not in told(flags=(), calls=0)
    assert "did not run" in told(flags=(), calls=0)


def test_the_gallery_shows_first_what_tells_the_models_apart():
    one, other = answered(), answered()
    predicted = np.array([[1, 1], [0, 0], [0, 1], [0, 1]])  # clean error, stands, broken, broken
    standing = np.array([[1, 1], [0, 0], [0, 1], [0, 0]])  # of the last, the second model is right
    order = gallery.telling([one._replace(predicted=predicted), other._replace(predicted=standing)])
    assert order.tolist() == [3, 2, 1, 0]


@pytest.mark.slow
def test_a_page_stays_below_two_megabytes():
    large = {"run": answered(count=4, size=300)}
    text = reports.to_html({"run": evaluation()}, frames=large)
    assert LIMIT / 2 < len(text.encode()) < LIMIT
    assert 1 <= text.count("<article") < 4
    none = gallery.gallery(large, {"run": 0}, [], limit=300_000)
    assert none == "<p>The images, of 300 x 300 pixels, are too large for this page.</p>"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_become_png_without_loss(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 3, channels)).astype(np.uint8)
    kind, data = gallery.data_url(image / np.float32(255)).split(",")
    assert kind == "data:image/png;base64"
    seen = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
    expected = image[..., :3] if channels >= 3 else image[..., 0]
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("end", [1e-7, 0.3, 0.675, 1.0, 7.0, 99.0, 1.2e6])
def test_ticks_are_few_and_within_the_axis(end):
    found = charts.ticks(end)
    assert 3 <= len(found) <= 7
    assert found[0] == 0
    assert end / 2 < found[-1] <= end * (1 + 1e-9)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="got none"):
        reports.to_html({})
    with pytest.raises(ValueError, match=r"curves must be of models in evaluations \['a'\], got \['b'\]"):
        reports.to_html({"a": evaluation()}, curves={"b": curve()})
    others = {"a": answered(), "b": answered(count=3)}
    with pytest.raises(ValueError, match="the same images"):
        reports.to_html({"a": evaluation(), "b": evaluation()}, frames=others)
    for other in (answered(shares=3), answered()._replace(labels=np.ones(4, int))):
        with pytest.raises(ValueError, match="the same images, labels and steps"):
            reports.to_html({"a": evaluation(), "b": evaluation()}, frames={"a": answered(), "b": other})


def test_what_is_right_does_not_depend_on_names():
    text = reports.to_html({"a": evaluation()}, frames={"a": answered()}, class_names=["crane\u202e", "crane\u202e"])
    (first, *_) = [json.loads(each["data-answers"]) for _, each in Outline(text).found if "data-answers" in each]
    assert [right for *_, right in first] == [1, 1, 1, 1, 0]


def test_differences_are_multiplied_by_what_the_page_says():
    found = answered()
    moved = deformreg.warp(found.images, found.flows, boundary="edge")
    text = reports.to_html({"a": evaluation()}, frames={"a": found})
    said = float(re.search(r"multiplied by ([\d.]+[\d])", text)[1])
    assert said * np.abs(moved - found.images).max() == pytest.approx(0.5, rel=5e-3)  # from grey to black or white


def test_frames_of_a_network_that_masks_a_class_out_have_its_answers():
    images, flows = np.ones((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 2), np.float32)
    found = frames(lambda images: images[:, 0, 0] * jnp.array([[1, -jnp.inf, 2]]), images, [0], flows, num_steps=1)
    assert found.predicted.tolist() == [[2, 2]]
    np.testing.assert_allclose(found.confidences, jax.nn.sigmoid(1.0), rtol=1e-5)
    np.testing.assert_allclose(found.label_confidences, jax.nn.sigmoid(-1.0), rtol=1e-5)


@pytest.mark.slow
def test_frames_ask_the_network_about_the_warped_images():
    rng = np.random.default_rng(0)
    images, flows = rng.random((3, 5, 4, 2)).astype(np.float32), rng.normal(size=(3, 5, 4, 2)).astype(np.float32)
    weights = rng.normal(size=(40, 3)).astype(np.float32)
    network = jax.tree_util.Partial(lambda weights, images: images.reshape(len(images), -1) @ weights, weights)
    boundaries = ["zeros", "edge", "zeros"]
    found = frames(network, images, [0, 1, 2], flows, boundary=boundaries, num_steps=2, batch_size=2)
    for index, boundary in enumerate(boundaries):
        for step, share in enumerate((0.0, 0.5, 1.0)):
            at = slice(index, index + 1)
            expected = jax.nn.softmax(network(deformreg.warp(images[at], share * flows[at], boundary=boundary)))[0]
            assert found.predicted[index, step] == jnp.argmax(expected)
            np.testing.assert_allclose(found.confidences[index, step], expected.max(), rtol=1e-5)
            np.testing.assert_allclose(found.label_confidences[index, step], expected[index], rtol=1e-5)
    with pytest.raises(ValueError, match="one for all 3 images or one for each, got 2"):
        frames(network, images, [0, 1, 2], flows, boundary=["zeros", "edge"])
    broken = frames(lambda images: network(images) + jnp.nan, images, [0, 1, 2], flows, num_steps=1)
    assert (broken.predicted == -1).all()
    assert (broken.confidences == 0).all()
    for label in (-1, 3):
        with pytest.raises(ValueError, match=f"labels.*{label}"):
            frames(network, images, [0, 1, label], flows)


# In a browser.

in_a_browser = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def opened():
    with browser() as page:
        yield page


def written(tmp_path, text):
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_loads_nothing_and_has_nothing_to_complain_of(opened, tmp_path, width):
    opened.events.clear()
    path = written(tmp_path, report())
    opened.open(path, width=width, phone=width < 500)
    assert opened.run("document.documentElement.scrollWidth") <= width
    assert not opened.run("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
    requests = {
        event["params"]["request"]["url"]
        for event in opened.events
        if event.get("method") == "Network.requestWillBeSent"
    }
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}
    complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in opened.events if event.get("method") in complaints] == []


@pytest.mark.slow
@in_a_browser
def test_the_policy_stops_what_a_page_would_load(opened, tmp_path):
    """Without this, the test above could not fail."""
    text = page("title", Html('<img src="http://127.0.0.1:9/picture.png">'), [])
    opened.events.clear()
    opened.open(written(tmp_path, text))
    opened.run("new Promise(done => setTimeout(done, 200))")
    complaints = [event for event in opened.events if event.get("method") == "Log.entryAdded"]
    assert "Content Security Policy" in json.dumps(complaints)


DRAWN = """
[...document.querySelectorAll(".frames")].map(row => {
  const canvas = row.querySelector(".moved");
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
})
"""


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("boundary", ["zeros", "edge", "reflect"])
def test_the_slider_moves_the_pixels_as_the_library_does(opened, tmp_path, boundary):
    opened.open(written(tmp_path, report(boundary=boundary, channels=3)))
    opened.run("document.querySelector('.gallery input').focus()")
    models = [answered(number, boundary=boundary, channels=3) for number in range(2)]
    gain = opened.run("Number(document.querySelector('.gallery').dataset.gain)")
    order = gallery.telling(models)
    for share in (1.0, 0.75, 0.5):
        drawn = np.array(opened.run(DRAWN)).reshape(-1, 2, 6, 6, 4)
        for seen, index in zip(drawn, order, strict=True):
            for canvas, model in zip(seen, models, strict=True):
                image = np.round(model.images[index] * 255).astype(np.float32)
                moved = deformreg.warp(image[None], share * model.flows[index][None], boundary=boundary)[0]
                np.testing.assert_allclose(canvas[..., :3], moved, atol=0.51)
        differences = np.array(opened.run(DRAWN.replace(".moved", ".difference"))).reshape(drawn.shape)
        clean = np.round(models[0].images[order] * 255)[:, None]
        expected = np.clip(127.5 + gain * (drawn[..., :3] - clean), 0, 255)
        np.testing.assert_allclose(differences[..., :3], expected, atol=0.5 * gain + 0.51)
        says = opened.run("document.querySelector('.gallery output').textContent")
        assert says.startswith(f"{100 * share:.0f} %")
        assert ("right on 0 of 4" if share == 1 else "right on 4 of 4") in says
        opened.press("ArrowLeft")


@pytest.mark.slow
@in_a_browser
def test_the_keyboard_moves_through_a_chart(opened, tmp_path):
    opened.open(written(tmp_path, report()))
    opened.run("document.querySelector('.band').focus()")
    said = []
    for key in ("ArrowRight", "End", "ArrowRight", "Home"):
        opened.press(key)
        said.append(opened.run("document.activeElement.getAttribute('aria-label')").partition(":")[0])
    assert said == ["0.5 px", "1 px", "1 px", "0 px"]
    shown = "getComputedStyle(document.activeElement.querySelector('.cursor')).visibility"
    assert opened.run(shown) == "visible"


@pytest.mark.slow
@in_a_browser
def test_a_report_is_printed_and_is_dark_in_the_dark(opened, tmp_path):
    path = written(tmp_path, report())
    background = "getComputedStyle(document.body).backgroundColor"
    opened.open(path)
    light = opened.run(background)
    assert opened.pdf().startswith(b"%PDF")
    opened.open(path, dark=True)
    assert opened.run(background) != light
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    opened.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    on_paper = opened.run(background)
    opened.call("Emulation.setEmulatedMedia", media="")
    assert on_paper == light  # paper is white


def test_frames_are_those_of_the_weights_of_today():
    weights = [np.float32(1.0)]

    def network(images):
        total = images.sum((1, 2, 3)) * weights[0]
        return jnp.stack([total, -total], axis=1)

    images, flows = np.ones((1, 4, 4, 1), np.float32), np.zeros((1, 4, 4, 2), np.float32)
    assert frames(network, images, [0], flows, num_steps=1).predicted.tolist() == [[0, 0]]
    weights[0] = np.float32(-1.0)
    assert frames(network, images, [0], flows, num_steps=1).predicted.tolist() == [[1, 1]]
