"""Photographs from a folder to batches by the loader of PyTorch or TensorFlow, to time this program's against.

The script needs the one library, and Pillow for PyTorch, but no JAX. It answers each line of standard input with the
milliseconds of processor time, of all threads, of one pass over the folder. Importing this module needs neither.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDE, BATCH = 224, 128


def pytorch(paths: list[str], threads: int) -> Callable[[], None]:
    """A `DataLoader` without workers, whose processor time would not be seen; PIL decodes and resizes."""
    import numpy as np
    import torch
    from PIL import Image

    class Photographs(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            with Image.open(paths[index]) as image:
                return torch.from_numpy(np.array(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)))

    torch.set_num_threads(threads)
    loader = torch.utils.data.DataLoader(Photographs(), batch_size=BATCH)

    def work() -> None:
        for _ in loader:
            pass

    return work


def tensorflow(paths: list[str], threads: int) -> Callable[[], None]:
    """A `tf.data` pipeline that decodes with its default settings and resizes antialiased."""
    import tensorflow as tf

    def decode(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.image.resize(image, (SIDE, SIDE), antialias=True), tf.uint8)

    batches = tf.data.Dataset.from_tensor_slices(paths).map(decode, num_parallel_calls=threads).batch(BATCH).prefetch(1)

    def work() -> None:
        for _ in batches:
            pass

    return work


def main(argv: list[str] | None = None) -> None:
    """Answers requests until standard input ends."""
    parser = argparse.ArgumentParser(description="Times reading photographs by another library.")
    parser.add_argument("--library", choices=("pytorch", "tensorflow"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    paths = sorted(str(path) for path in arguments.folder.rglob("*.jpg"))
    work = {"pytorch": pytorch, "tensorflow": tensorflow}[arguments.library](paths, arguments.threads)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        work()
        print(f"{1e3 * (time.process_time() - start):.3f}", flush=True)


if __name__ == "__main__":
    main()
