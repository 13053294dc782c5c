"""Which files a model's weights are read from, and the folder they lie in."""

from collections.abc import Mapping
from pathlib import Path

from kvlingua.common.errors import UnsupportedError
from kvlingua.common.identity import canonical_json
from kvlingua.common.regular_file import only_regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LOAD_FORMATS = ("auto", "hf", "safetensors")
IN_MEMORY = "memory"  # not loaded from files: the caller fingerprints the weights themselves
_MAX_INDEX_BYTES = 64 << 20


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: a path, or a hub id's snapshot in the local cache. The network is never asked.

    Raises UnsupportedError if there is neither.
    """
    if str(model) and Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UnsupportedError("model_files", f"{model} is no folder, and huggingface_hub is not installed") from None
    try:
        return Path(snapshot_download(str(model), revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no valid id
        at = f" at revision {revision}" if revision else ""
        raise UnsupportedError("model_files", f"{model}{at} is neither a folder nor in the local hub cache") from None


def weight_files(folder: Path, load_format: str) -> Mapping[str, Path]:
    """Name -> file for exactly the files that every engine reads, sorted by name; none if load_format is `IN_MEMORY`.

    Raises UnsupportedError where engines may disagree: no safetensors files, or more of them than the loader's set.
    """
    if load_format == IN_MEMORY:
        return {}
    if load_format == "dummy":
        raise UnsupportedError(
            "dummy_weights", "weights that were not read from files (load_format dummy) have no identity"
        )
    if load_format not in LOAD_FORMATS:
        raise UnsupportedError(
            "load_format", f"load_format {load_format!r} is not supported: use {', '.join(LOAD_FORMATS)}"
        )
    try:
        present = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise UnsupportedError("model_files", f"{folder} can't be read: {error.strerror}") from None
    if "adapter_config.json" in present:
        raise UnsupportedError(
            "lora", f"{folder} holds an adapter (adapter_config.json): adapters are not supported yet"
        )
    if SINGLE in present and INDEX in present:
        raise UnsupportedError(
            "weight_files", f"{folder} has both {SINGLE} and {INDEX}: keep what the model consists of"
        )
    if SINGLE in present:
        names = {SINGLE}
    elif INDEX in present:
        names = _indexed(folder / INDEX)
    else:
        raise UnsupportedError(
            "weight_files", f"{folder} has no {SINGLE} and no {INDEX}: only safetensors are supported"
        )
    others = sorted(name for name in present - names if name.endswith(".safetensors"))
    if others:
        raise UnsupportedError(
            "weight_files",
            f"{folder} has {others[0]} beside {', '.join(sorted(names)[:2])}: some engines would read it too",
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise UnsupportedError("weight_files", f"{folder} has no file {missing[0]}, which {INDEX} names")
    return {name: folder / name for name in sorted(names)}


def _indexed(index: Path) -> set[str]:
    try:
        with open(index, "rb", opener=only_regular) as file:
            values = canonical_json.decode(file.read(_MAX_INDEX_BYTES + 1), max_bytes=_MAX_INDEX_BYTES)
    except (OSError, ValueError) as error:
        raise UnsupportedError("weight_files", f"{index} can't be read: {error}") from None
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedError("weight_files", f"{index} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsupportedError("weight_files", f"{index} names {name!r}, which is not a safetensors file beside it")
    return set(weight_map.values())
