"""Images per second of one core: from photographs in files to batches, by this program and by others.

The time is the processor time of all threads together, so other programs on the machine disturb little, and threads
that wait cost nothing. Photographs are crops of scikit-learn's two, of 400 to 600 pixels, in JPEG quality 90.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.rows import Rows
from benchmarks.torch_peer import torch_peer
from train.data import Source, eval_batches, jpeg, load
from train.data.order import batch_draws
from train.data.resizing import resize
from train.data.view import NUM_DRAWS

SIDE = 224
BATCH = 128

OURS = "folder"


class Host(NamedTuple):
    """Accelerators that one host feeds: their number and published peaks, bfloat16 FLOPs and bytes per second."""

    chips: int
    flops: float
    memory_bandwidth: float


HOSTS = {"v5e-8": Host(8, 197e12, 819e9), "8 H100": Host(8, 989e12, 3350e9)}

STEPS = {"standard": (24.3e9, 0.27e9), "flow-gradient": (48.5e9, 0.72e9)}
"""FLOPs and bytes of memory traffic per image of a ResNet-50 step at 224 pixels in bfloat16, as `pods` counts them."""


def images_per_second(host: Host, method: str) -> float:
    """How many images a host's accelerators take, if a step takes no longer than its roofline."""
    flops, traffic = STEPS[method]
    return host.chips / max(flops / host.flops, traffic / host.memory_bandwidth)


def measure(
    count: int, rounds: int, budget_seconds: float | None, torch_python: str | None, tensorflow_python: str | None
) -> Rows:
    """A row per loader.

    Args:
        count: photographs.
        rounds, budget_seconds: as in `harness.interleave`.
        torch_python, tensorflow_python: interpreters with PyTorch or TensorFlow; None leaves them out.

    Raises:
        UserError: an interpreter cannot be used.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths, name = write_photographs(folder / "photos", count), f"folder:{folder / 'photos'}"
        works = {
            OURS: _through(load(name, **_streamed(folder))),
            "folder, random crops": _cropped(load(name, random_crop=0.08, **_streamed(folder))),
            "ArrayRecord": _through(_array_record(folder, paths)),
            "bare: simplejpeg and OpenCV": _bare(paths, _decode_small),
            "bare: simplejpeg, not resized": _bare(paths, _decode_whole),
            "bare: PIL": _bare(paths, _decode_pil),
            "Grain with PIL": _grain(paths),
        }
        candidates: dict[str, Callable[[], Any]] = {name: _timed(work) for name, work in works.items()}
        for library, python in (("PyTorch", torch_python), ("TensorFlow", tensorflow_python)):
            if python is not None:
                words = ["--library", library.lower(), "--folder", str(folder / "photos")]
                peer = torch_peer(python, "loader_peer.py", words, library)
                candidates[f"{library}'s loader"] = stack.enter_context(peer)
        samples = harness.interleave(candidates, rounds=rounds, budget_seconds=budget_seconds)
    return [_row(name, samples, count) for name in samples]


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Writes photographs of ten classes to ``train``; returns their paths."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    whole, rng, paths = [Image.fromarray(image) for image in load_sample_images().images], np.random.default_rng(0), []
    for number in range(count):
        image = whole[number % len(whole)]
        sides = [int(rng.integers(320, side + 1)) for side in image.size]
        left, top = (int(rng.integers(0, side - part + 1)) for side, part in zip(image.size, sides, strict=True))
        width, height = (int(side) for side in rng.integers(400, 601, 2))
        part = image.crop((left, top, left + sides[0], top + sides[1])).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        paths.append(folder / "train" / f"class-{number % 10}" / f"{number:06}.jpg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        part.save(paths[-1], quality=90)
    return paths


def _row(name: str, samples: harness.Samples, count: int) -> dict[str, Any]:
    milliseconds = harness.summary(samples[name])["milliseconds"] / count
    rate = 1e3 / milliseconds
    cores = {
        f"cores_for_{host}_{method}": images_per_second(peaks, method) / rate
        for host, peaks in HOSTS.items()
        for method in STEPS
    }
    ratio = harness.ratio(samples, name, OURS)
    return {
        "loader": name,
        "photographs": count,
        "image_size": SIDE,
        "milliseconds": milliseconds,
        "images_per_second_and_core": rate,
        "ratio_to_ours": ratio["ratio"],
        "ratio_quartiles": ratio["ratio_quartiles"],
        "repeats": len(samples[name]),
        **cores,
    }


def _timed(work: Callable[[], None]) -> Callable[[], float]:
    def candidate() -> float:
        start = time.process_time()
        work()
        return 1e3 * (time.process_time() - start)

    return candidate


def _streamed(folder: Path) -> dict[str, Any]:
    return {"data_dir": folder / "data", "image_size": SIDE, "memory_limit": 1}


def _through(source: Source) -> Callable[[], None]:
    def work() -> None:
        for _ in eval_batches(source, batch_size=BATCH):
            pass

    return work


def _cropped(source: Source) -> Callable[[], None]:
    def work() -> None:
        for number, start in enumerate(range(0, len(source), BATCH)):
            rows = np.arange(start, min(start + BATCH, len(source)))
            source.read(rows, batch_draws(number, batch_size=BATCH, count=NUM_DRAWS, seed=0)[: len(rows)])

    return work


def _array_record(folder: Path, paths: list[Path]) -> Source:
    """The photographs as a set that TFDS prepared."""
    import tensorflow_datasets as tfds

    class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for number, path in enumerate(paths):
                yield number, {"image": path, "label": number % 10}

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        Photographs(data_dir=str(folder / "data"), file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return load("photographs", **_streamed(folder))


def _decode_small(data: bytes) -> np.ndarray:
    """What a JPEG costs at least with the application's decoder and resizer."""
    pixels = jpeg.decode(data, "RGB", (SIDE, SIDE))
    assert pixels is not None
    return resize(pixels, SIDE)


def _decode_whole(data: bytes) -> np.ndarray:
    """What a JPEG costs at least with libjpeg."""
    import simplejpeg

    pixels: np.ndarray = simplejpeg.decode_jpeg(data)
    return pixels


def _decode_pil(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _bare(paths: list[Path], decode: Callable[[bytes], np.ndarray]) -> Callable[[], None]:
    """Decodes bytes in memory, without files, threads or batches."""
    encoded = [path.read_bytes() for path in paths]

    def work() -> None:
        for data in encoded:
            decode(data)

    return work


def _grain(paths: list[Path]) -> Callable[[], None]:
    """A plain pipeline, with Grain's own threads."""
    import grain

    def work() -> None:
        images = grain.MapDataset.source(paths).map(lambda path: _decode_pil(path.read_bytes())).batch(BATCH)
        for _ in images.to_iter_dataset():
            pass

    return work
