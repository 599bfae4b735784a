"""The gallery: test images that a slider moves along the flows that deform them, with the networks' answers."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from deformreg.evaluation.data import HostArray
from deformreg.evaluation.frames import Frames
from deformreg.evaluation.html.elements import Html, element, swatch
from deformreg.warping import Boundary, warp

MOST = 8
"""Images of a gallery."""


def gallery(frames: Mapping[str, Frames], numbers: Mapping[str, int], class_names: Sequence[str], limit: int) -> Html:
    """Draws the images that tell most about the models.

    Args:
        frames: by the models' names; all of the same images.
        numbers: of the models, by which they have their colours.
        class_names: one per label.
        limit: bytes that the gallery may take.

    Returns:
        The gallery, with as many images as the limit allows; a sentence in its place if it allows none.
    """
    first = next(iter(frames.values()))
    order = telling(list(frames.values()))[:MOST]
    largest = max(float(np.hypot(*np.moveaxis(each.flows[order], -1, 0)).max()) for each in frames.values())
    gain = _gain(list(frames.values()), order)
    cards: list[Html] = []
    for index in order:
        cards.append(_card(int(index), frames, numbers, class_names))
        if sum(map(len, cards)) > limit:
            cards.pop()
            break
    if not cards:
        size = " x ".join(map(str, first.images.shape[1:3]))
        return element("p", f"The images, of {size} pixels, are too large for this page.")
    return element(
        "div",
        element("p", _explanation(gain)),
        _controls(largest, first.shares),
        element("div", *cards, class_="cards"),
        class_="gallery", data_gain=f"{gain:.6g}", data_largest=f"{largest:.6g}",
    )  # fmt: skip


def telling(frames: Sequence[Frames]) -> HostArray:
    """The images in the order in which they are worth showing.

    First those that tell the models apart: all are right about them when they are clean, only some when the whole flow
    has moved them. Then those that at least one model loses; clean errors last.

    Args:
        frames: of each model; all of the same images.

    Returns:
        int[n], the images' indices.
    """
    right = np.all([each.predicted[:, 0] == each.labels for each in frames], axis=0)
    stands = np.sum([each.predicted[:, -1] == each.labels for each in frames], axis=0)
    rank = np.where(~right, 3, np.where(stands == len(frames), 2, np.where(stands == 0, 1, 0)))
    order: HostArray = np.argsort(rank, kind="stable")
    return order


def _gain(frames: Sequence[Frames], order: HostArray) -> float:
    """The factor at which the largest difference of any image reaches from grey to black or white."""
    largest = 1e-6
    for each in frames:
        for index in order:
            image, flow = each.images[index : index + 1], each.flows[index : index + 1]
            moved = warp(cast(Any, image), cast(Any, flow), boundary=cast(Boundary, each.boundaries[index]))
            largest = max(largest, float(np.abs(np.asarray(moved) - image).max()))
    return 0.5 / largest


def _explanation(gain: float) -> str:
    return (
        "Test images with the flow that an attack found for each against each model. The slider moves the pixels along "
        "the flow; below are the model's answer to that image, its probability of the label (green) and of another "
        "class (red). In the flow, hue is the direction from which a pixel takes its content, and saturation the "
        f"distance. Grey is no difference; differences are multiplied by {gain:.3g}."
    )


def _controls(largest: float, shares: HostArray) -> Html:
    label = element("label", "Share of the flow", for_="share")
    slider = element("input", type="range", id="share", min=0, max=len(shares) - 1, step=1, value=len(shares) - 1)
    output = element("output", for_="share", id="shown")
    wheel = element(
        "div",
        element("div", class_="disc", role="img", aria_label="Colour wheel: the hue of each direction"),
        element("span", f"rim: {largest:.3g} px"),
        class_="wheel",
    )
    return element("div", element("div", label, slider, output, class_="slide"), wheel, class_="controls")


def _card(index: int, frames: Mapping[str, Frames], numbers: Mapping[str, int], class_names: Sequence[str]) -> Html:
    first = next(iter(frames.values()))
    label = _name(class_names, first.labels[index])
    clean = element(
        "img", src=data_url(first.images[index]), alt=f"Test image {index + 1}, clean: {label}", class_=_crisp(first),
        width=first.images.shape[2], height=first.images.shape[1],
    )  # fmt: skip
    rows = [_row(numbers[name], name, each, index, class_names) for name, each in frames.items()]
    title = element("h3", f"Image {index + 1}: ", element("span", label))
    clean = element("figure", clean, element("figcaption", "clean"))
    return element("article", title, element("div", clean, *rows, class_="tiles"), class_="card")


def _row(number: int, name: str, frames: Frames, index: int, class_names: Sequence[str]) -> Html:
    """What one model's attack makes of an image: three canvases, which the script draws, and the answer."""
    height, width = frames.images.shape[1:3]
    flow, label = frames.flows[index], frames.labels[index]
    scale = max(float(np.abs(flow).max()), 1e-9)
    packed = np.round(flow / scale * 32767).astype("<i2").tobytes()
    answers = [
        # Classes may share a name, as two of ImageNet's are called "crane": the class decides what is right.
        [_name(class_names, predicted), round(float(confidence), 4), round(float(of_label), 4), int(predicted == label)]
        for predicted, confidence, of_label in zip(
            frames.predicted[index], frames.confidences[index], frames.label_confidences[index], strict=True
        )
    ]
    tiles = [
        element("figure", element("canvas", width=width, height=height, class_=f"{kind} {_crisp(frames)}", role="img",
                                  aria_label=f"Test image {index + 1} against {name}: {text}"),
                element("figcaption", text))
        for kind, text in (("moved", "deformed"), ("flow", "flow"), ("difference", "difference"))
    ]  # fmt: skip
    return element(
        "div", element("div", swatch(number), element("span", name), class_="against"), *tiles,
        element("div", element("div", element("i"), element("i"), class_="bar", aria_hidden="true"),
                element("span", class_="answer"), class_="says"),
        class_="frames", data_flow=base64.b64encode(zlib.compress(packed, 9)).decode(), data_scale=f"{scale:.9g}",
        data_boundary=frames.boundaries[index], data_number=number, data_name=name,
        data_label=_name(class_names, label), data_answers=json.dumps(answers, separators=(",", ":")),
    )  # fmt: skip


def _name(class_names: Sequence[str], label: Any) -> str:
    return class_names[int(label)] if 0 <= int(label) < len(class_names) else str(int(label))


def _crisp(frames: Frames) -> str | None:
    """The class of small images, whose pixels are drawn as squares."""
    return "crisp" if max(frames.images.shape[1:3]) <= 96 else "smooth"


def data_url(image: HostArray) -> str:
    """An image with values in [0, 1] as a PNG inside an address; it has the first three channels, or the first one."""
    channels = 3 if image.shape[-1] >= 3 else 1
    pixels = np.round(np.clip(image[..., :channels], 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    lines = pixels.reshape(height, width * channels)
    # Filter 2: each line is stored as its difference from the one above, which compresses better.
    above = np.concatenate([np.zeros_like(lines[:1]), lines[:-1]])
    data = np.concatenate([np.full((height, 1), 2, np.uint8), lines - above], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
