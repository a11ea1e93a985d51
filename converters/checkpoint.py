"""A checkpoint folder: its JSON files and where in which safetensors file each tensor lies.

Reads headers when it is opened and bytes when it is asked. Never unpickles anything. Knows nothing of architectures.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidcli.errors import IntegrityError, LiquidError, NotFoundError, UsageError, quote

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100_000_000  # ref: the safetensors format
MAX_SMALL_BYTES = 1 << 27  # JSON, once parsed, may take twenty times as much
MAX_NAME, MAX_FILE_NAME = 1000, 255
LFS_POINTER = b"version https://git-lfs"

# bits that numpy can carry, by safetensors type; BF16 travels as its bits
CARRIERS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
ITEM_BYTES = {
    **{name: np.dtype(carrier).itemsize for name, carrier in CARRIERS.items()},
    **{"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "C64": 8},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
}


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a safetensors file, unread."""

    name: str
    dtype: str  # safetensors' spelling
    shape: tuple[int, ...]
    path: Path
    offset: int  # from the beginning of the file
    size_bytes: int

    def read(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows [first, first + count) of the first axis as numpy carries them; BF16 as uint16 bits."""
        carrier = np.dtype(CARRIERS[self.dtype])
        row_shape = self.shape[1:]
        row_items = int(np.prod(row_shape, dtype=np.int64))
        if count is None:
            count = (self.shape[0] if self.shape else 1) - first
        items = np.fromfile(
            self.path, carrier, count * row_items, offset=self.offset + first * row_items * carrier.itemsize
        )
        if items.size != count * row_items:
            raise IntegrityError(f"{self.path} changed while it was read: {self.name} is cut short")
        return items.reshape((count, *row_shape) if self.shape else ())


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]

    def json(self, name: str) -> dict[str, Any] | None:
        """An optional JSON file of the folder."""
        path = self.folder / name
        return read_json(path) if is_there(path) else None

    def advice(self, name: str) -> dict[str, Any]:
        """A JSON file that none needs: empty where it is missing or broken."""
        try:
            return self.json(name) or {}
        except (LiquidError, OSError):
            return {}


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read config.json and every safetensors header of a folder."""
    folder = Path(folder)
    if folder.is_file():
        raise UsageError(f"{folder} is a file, a checkpoint folder was expected", hint=_file_hint(folder))
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist")
    if not is_there(folder / "config.json"):
        raise NotFoundError(f"{folder} has no config.json, so it is not a Hugging Face checkpoint folder")
    config = read_json(folder / "config.json")
    tensors: dict[str, SourceTensor] = {}
    for path in _shards(folder):
        for tensor in read_header(path):
            if tensor.name in tensors:
                raise IntegrityError(f"{tensor.name} is both in {tensors[tensor.name].path.name} and in {path.name}")
            tensors[tensor.name] = tensor
    _check_index(folder, tensors)
    return Checkpoint(folder, config, tensors)


def stray_index(folder: Path) -> list[str]:
    """A warning where an index of shards lies beside the one file; transformers reads that file too."""
    both = (folder / SINGLE).is_file() and (folder / INDEX).is_file()
    return [f"{INDEX} and what it lists were left out: {SINGLE} lies beside it"] if both else []


def is_there(path: Path) -> bool:
    """Whether the file lies there. What lies there and is no file must not count as absent: IntegrityError."""
    if path.is_file():
        return True
    if path.is_symlink() and not path.exists():
        raise IntegrityError(f"{path} is a link to a file that is not there", hint="fetch the folder again")
    if path.exists():
        raise IntegrityError(f"{path} is no regular file", hint=f"remove it, or put the real {path.name} in its place")
    return False


def check_small(path: Path) -> None:
    """For files without weights."""
    if path.stat().st_size > MAX_SMALL_BYTES:
        raise IntegrityError(f"{path} has {path.stat().st_size} bytes, more than any such file needs")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or IntegrityError in one sentence."""
    check_small(path)
    data = path.read_bytes()
    _refuse_pointer(path, data)
    value = _parse(data, str(path))
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} holds a JSON {type(value).__name__}, an object was expected")
    return value


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is not valid JSON: {error}") from error


def _refuse_pointer(path: Path, data: bytes) -> None:
    if data.startswith(LFS_POINTER):
        raise IntegrityError(
            f"{path} is a pointer that git-lfs left, not the file itself", hint=f"git -C {path.parent} lfs pull"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{quote(name)} appears more than once")
    return result


def _file_hint(path: Path) -> str | None:
    if path.suffix == ".gguf":
        return f"it is a GGUF already: liquid quantize {path} q4_k_m"
    if path.suffix == ".safetensors":
        return f"name its folder: liquid convert {path.parent}"
    return None


def _shards(folder: Path) -> list[Path]:
    if is_there(folder / SINGLE):
        return [folder / SINGLE]
    if is_there(folder / INDEX):
        names = sorted(set(_weight_map(folder).values()))
        if missing := [name for name in names if not is_there(folder / name)]:
            raise NotFoundError(f"{folder} lacks {len(missing)} of its {len(names)} shards, the first is {missing[0]}")
        return [folder / name for name in names]
    found = sorted(path for path in folder.iterdir() if path.is_file())
    if stray := [path.name for path in found if path.suffix == ".safetensors"]:
        raise NotFoundError(f"{folder} has {stray[0]} but neither {SINGLE} nor {INDEX}")
    if pickles := [path.name for path in found if path.suffix in PICKLES]:
        raise LiquidError(
            f"{folder} holds its weights as {pickles[0]}, a pickle, which can run code when it is read; "
            "safetensors were expected",
            hint="load it in a place you trust with transformers and save it with save_pretrained",
        )
    raise NotFoundError(f"{folder} has a config.json but no {SINGLE}")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    weights = read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise IntegrityError(f"{path} has no weight_map")
    for name, shard in weights.items():
        if not _is_shard_name(shard):
            raise IntegrityError(f"{path} places {name:.80} in {shard!r:.80}, a .safetensors file name was expected")
    return weights


def _is_shard_name(name: Any) -> bool:
    named = isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
    return named and len(name.encode(errors="replace")) <= MAX_FILE_NAME and "\0" not in name


def _check_index(folder: Path, tensors: dict[str, SourceTensor]) -> None:
    if not is_there(folder / INDEX) or (folder / SINGLE).is_file():
        return
    for name, shard in _weight_map(folder).items():
        if name not in tensors or tensors[name].path.name != shard:
            raise IntegrityError(f"{INDEX} says that {shard} holds {name:.80}, which it does not")


def read_header(path: Path) -> list[SourceTensor]:
    """The tensors of one safetensors file: every offset inside the file, every byte in exactly one tensor."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if LFS_POINTER.startswith(prefix) and prefix:
            _refuse_pointer(path, prefix + file.read(len(LFS_POINTER)))
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise IntegrityError(f"{path} is cut short or no safetensors: it claims a header of {header_bytes} bytes")
        header = _parse(file.read(header_bytes), f"the header of {path}")
    if not isinstance(header, dict):
        raise IntegrityError(f"the header of {path} is no JSON object")
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors = [_tensor(path, data_start, name, entry) for name, entry in header.items()]
    _check_layout(path, tensors, data_start, file_bytes)
    return tensors


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(path: Path, data_start: int, name: str, entry: Any) -> SourceTensor:
    if len(name) > MAX_NAME:
        raise IntegrityError(f"{path}: a tensor has a name of {len(name)} letters, it begins with {name:.40}")
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, span = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise IntegrityError(f"{path}: {name} has the type {quote(dtype)}, which safetensors does not know")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
        raise IntegrityError(f"{path}: {name} has no sensible shape")
    if not isinstance(span, list) or len(span) != 2 or not all(map(_is_size, span)):
        raise IntegrityError(f"{path}: {name} has no sensible data_offsets")
    needed = ITEM_BYTES[dtype]
    for size in shape:
        needed *= size
    if span[1] - span[0] != needed:
        raise IntegrityError(f"{path}: {name} has {span[1] - span[0]} bytes, {shape} of {dtype} needs {needed}")
    return SourceTensor(name, dtype, tuple(shape), path, data_start + span[0], needed)


def _check_layout(path: Path, tensors: list[SourceTensor], data_start: int, file_bytes: int) -> None:
    end, before = data_start, "its header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset + tensor.size_bytes > file_bytes:
            raise IntegrityError(
                f"{path} is cut short: {tensor.name} ends at byte {tensor.offset + tensor.size_bytes} of {file_bytes}"
            )
        if tensor.offset != end:
            what = "overlaps" if tensor.offset < end else "leaves a hole after"
            raise IntegrityError(f"{path}: the data of {tensor.name} {what} {before}")
        end, before = tensor.offset + tensor.size_bytes, tensor.name
    if end != file_bytes:
        raise IntegrityError(f"{path} has {file_bytes - end} bytes after its last tensor")
