"""The metadata of a prepared TFDS set, checked before TFDS acts on it.

TFDS imports the Python modules that ``features.json`` names and opens the paths in ``dataset_info.json``. An untrusted
folder could make it run any code and read any file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from train.errors import DataError, one_line
from train.files import read_bytes

_MAX_EXAMPLES = 2**28
_MAX_BYTES = 2**24
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.(\w+\.)?(?P<kind>\w+)")
_PLAIN = {"BBoxFeature", "ClassLabel", "Dataset", "FeaturesDict", "Scalar", "Sequence", "Text"}
# At the top level their decoding is switched off; inside other features TFDS would decode them.
_UNDECODED = {"Image", "Tensor"}
_TEMPLATE = re.compile(r"(\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\}|[\w.@-])*")


def check_metadata(folder: Path) -> None:
    """Refuses metadata that name code or paths outside the folder or are too large, and what is no regular file.

    Raises:
        DataError: one line with the file and what is wrong in it.
    """
    for path in folder.iterdir():
        if path.is_symlink():
            raise DataError(f"{path}: a symbolic link; put what it points to in its place")
        if not path.is_file() and not path.is_dir():  # reading a pipe would block
            raise DataError(f"{path}: not a regular file; remove it")
        if path.suffix in (".json", ".txt") and path.stat().st_size > _MAX_BYTES:  # TFDS reads them whole
            raise DataError(f"{path}: over {_MAX_BYTES} bytes; copy or prepare the set again")
    features = _read_json(folder / "features.json")
    _check_feature(folder / "features.json", features, depth=0)
    info = _read_json(folder / "dataset_info.json")
    splits = info.get("splits", [])
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise DataError(f"{folder / 'dataset_info.json'}: has no list of splits; copy it again")
    for name in [info.get("name", ""), *(split.get("filepathTemplate", "") for split in splits)]:
        if not isinstance(name, str) or not _TEMPLATE.fullmatch(name):
            raise DataError(f"{folder / 'dataset_info.json'}: {name!r:.80} is no file name; prepare the set again")


def check_shards(folder: Path, split: str, size: int) -> None:
    """Refuses a split that claims more examples than its files have bytes."""
    files = [path for path in folder.glob(f"*-{split}.*") if path.is_file()]
    limit = min(sum(path.stat().st_size for path in files), _MAX_EXAMPLES)
    if size > limit:
        raise DataError(f"{folder}: split {split!r} claims {size} examples in files of {limit} bytes; copy it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(read_bytes(path, limit=_MAX_BYTES).decode("utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.parent}: not a TFDS set ({path.name}: {one_line(error)}); copy it again") from error
    return tree


def _check_feature(path: Path, tree: Any, depth: int) -> None:
    """Checks a feature and those inside it."""
    if isinstance(tree, list):
        for item in tree:
            _check_feature(path, item, depth)
    if not isinstance(tree, dict):
        return
    for key in ("pythonClassName", "python_class_name", "type"):
        if key not in tree:
            continue
        match = _FEATURE.fullmatch(str(tree[key]))
        # The set itself is a FeaturesDict, depth 1; its features are at depth 2.
        depth += 1
        if match is None or match["kind"] not in (_PLAIN | _UNDECODED if depth <= 2 else _PLAIN):
            raise DataError(f"{path}: a feature of the kind {tree[key]!r:.120} is not read; leave it out of the set")
    for item in tree.values():
        _check_feature(path, item, depth)
