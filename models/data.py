"""Samples: read, fitted to a model's inputs, and shared out between calibration and evaluation."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.errors import InputError, first_cause
from optimize.models.model import TensorSpec
from optimize.models.usercode import call, is_reference, load_function

Array = NDArray[Any]
LABELS = "labels"
CALIBRATION_SHARE = 0.2
CALIBRATION_MOST = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with optional labels.

    Attributes:
        origin: where they come from, for messages and reports.
        inputs: for every input, one array a sample. As read, an array may lack the model's batch
            axis; :func:`fit` adds it.
        labels: shape (samples, ...), an object array where the labels' shapes differ; or None.
        batch_first: whether the first axis of every input is the batch axis, known after
            :func:`fit`.
    """

    origin: str
    inputs: Mapping[str, Sequence[Array]]
    labels: Array | None = None
    batch_first: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def sample(self, index: int) -> dict[str, Array]:
        """The inputs of one sample."""
        return {name: arrays[index] for name, arrays in self.inputs.items()}

    def take(self, indices: Iterable[int]) -> Dataset:
        """The samples at ``indices``, in that order; arrays are shared, not copied."""
        chosen = list(indices)
        inputs = {name: [arrays[i] for i in chosen] for name, arrays in self.inputs.items()}
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, inputs=inputs, labels=labels)

    def first(self, count: int) -> Dataset:
        """The first ``count`` samples, or all if there are fewer."""
        return self.take(range(min(count, len(self))))

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes, types and contents."""
        digest = hashlib.sha256()
        parts: list[tuple[str, Sequence[Array]]] = sorted(self.inputs.items())
        if self.labels is not None:
            parts.append((LABELS, list(self.labels)))
        for name, arrays in parts:
            digest.update(name.encode())
            for array in map(np.asarray, arrays):
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(content(array))
        return digest.hexdigest()


def shared(data: Dataset, judged: Dataset) -> list[int]:
    """Which samples of ``data`` are among those of ``judged``, by their inputs."""
    known = set(_prints(judged))
    return [index for index, found in enumerate(_prints(data)) if found in known]


def _prints(data: Dataset) -> Iterator[bytes]:
    """A digest of each sample's inputs."""
    names = sorted(data.inputs)
    for index in range(len(data)):
        digest = hashlib.blake2b(digest_size=16)
        for name in names:
            array = np.asarray(data.inputs[name][index])
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(content(array))
        yield digest.digest()


def content(array: Array) -> bytes:
    """What an array holds, as bytes that are the same whenever its items are."""
    if array.dtype.kind not in "OT":
        return np.ascontiguousarray(array).tobytes()
    return b"".join(map(_item_content, array.ravel().tolist()))  # its own memory holds pointers


def _item_content(item: Any) -> bytes:
    array = np.asarray(item)
    if array.dtype.hasobject:
        return repr(item).encode()
    return f"{array.dtype.str}{array.shape}".encode() + content(array)


def read_data(where: str, purpose: str = "--data") -> Dataset:
    """Read an ``.npz``, a folder with one ``.npz`` a sample, or a ``file.py:function``.

    Nothing is ever unpickled.

    Raises:
        InputError: it cannot be read, is empty, or its parts have different lengths.
    """
    check_there(where, purpose)
    if is_reference(where):
        return _from_function(where, purpose)
    path = Path(where)
    if path.is_dir():
        return _from_folder(path, purpose)
    if not path.is_file():
        raise InputError(f"{purpose} {where} is neither a file nor a folder")
    arrays = _read_npz(path, purpose)
    labels = arrays.pop(LABELS, None)
    if not arrays:
        raise InputError(f"{purpose} {where} holds no array but labels; name one for each input")
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if set(lengths.values()) == {0}:
        raise InputError(f"{purpose} {where} holds no samples")
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(
            f"{purpose} {where}: the arrays hold different numbers of samples: {shown}"
        )
    count = next(iter(lengths.values()))
    if labels is not None and (labels.ndim == 0 or len(labels) != count):
        found = len(labels) if labels.ndim else 1
        raise InputError(f"{purpose} {where}: {found} labels for {count} samples")
    return Dataset(where, {name: list(array) for name, array in arrays.items()}, labels)


def check_there(where: str, purpose: str = "--data") -> None:
    """Raise InputError if there is nothing that :func:`read_data` could read."""
    file = where.rpartition(":")[0] if is_reference(where) else where
    if not os.path.exists(file):  # noqa: PTH110  Path raises where a name is too long
        raise InputError(f"{purpose} {where} does not exist")


def fit(data: Dataset, specs: Sequence[TensorSpec], purpose: str = "--data") -> Dataset:
    """Check the samples against the model's inputs and give each its batch axis.

    An array with one axis less than the input gets a leading one. The only input of a model takes
    an array of any name.

    Raises:
        InputError: names, shapes or types do not fit.
    """
    inputs = dict(data.inputs)
    if len(specs) == 1 and len(inputs) == 1:
        inputs = {specs[0].name: next(iter(inputs.values()))}
    wanted = [spec.name for spec in specs]
    if set(inputs) != set(wanted):
        raise InputError(
            f"{purpose} {data.origin} holds {_names(inputs)}, the model takes {_names(wanted)}"
            f"{labels_hint(inputs.keys() - set(wanted))}"
        )
    fitted = {
        spec.name: [_fit(a, spec, data.origin, purpose) for a in inputs[spec.name]]
        for spec in specs
    }
    added = all(
        spec.shape is not None and inputs[spec.name][0].ndim + 1 == len(spec.shape)
        for spec in specs
    )
    single = all(a.ndim > 0 and a.shape[0] == 1 for arrays in fitted.values() for a in arrays)
    return replace(data, inputs=fitted, batch_first=added or single)


def labels_hint(strange: Collection[str]) -> str:
    """What to do about an array that is no input, but is called like labels."""
    likely = sorted({"label", "y", "target", "targets"} & set(strange))
    return f"; call {likely[0]} {LABELS!r} if it holds them" if likely else ""


def representative(data: Dataset, count: int = 4) -> Dataset:
    """Choose the first samples, and for every axis that varies the shortest and the longest."""
    chosen = set(range(min(count, len(data))))
    for arrays in data.inputs.values():
        ranks = [array.ndim for array in arrays]
        chosen |= _extremes(ranks)
        for axis in range(min(ranks)):
            chosen |= _extremes([array.shape[axis] for array in arrays])
    return data.take(sorted(chosen))


def _extremes(lengths: Sequence[int]) -> set[int]:
    """Where the least and the greatest stand, if they differ."""
    least, most = min(lengths), max(lengths)
    return {lengths.index(least), lengths.index(most)} if least < most else set()


def static_batch(specs: Sequence[TensorSpec]) -> int | None:
    """The batch size that all inputs have fixed alike, if they have."""
    sizes = {spec.shape[0] if spec.shape else None for spec in specs}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if isinstance(size, int) else None


def batched(data: Dataset, size: int) -> Dataset:
    """Join ``size`` samples at a time along the batch axis; a remainder is left out.

    Raises:
        InputError: the inputs have no common batch axis, differing shapes, or are too few.
    """
    if size == 1:
        return data
    if not data.batch_first:
        raise InputError(f"a batch of {size} needs inputs whose first axis is the batch")
    count = len(data) // size
    if count == 0:
        raise InputError(f"a batch of {size} needs at least {size} samples, there are {len(data)}")
    inputs: dict[str, list[Array]] = {}
    for name, arrays in data.inputs.items():
        if len({a.shape for a in arrays}) > 1:
            raise InputError(f"a batch of {size} needs samples of one shape; {name} has several")
        inputs[name] = [np.concatenate(arrays[i * size : (i + 1) * size]) for i in range(count)]
    labels = None if data.labels is None else data.labels[: count * size]
    return replace(data, inputs=inputs, labels=labels)


def split(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Share samples out: a fixed fifth, 256 at most, for calibration, the rest for evaluation.

    Raises:
        InputError: there are fewer than two samples.
    """
    if len(data) < 2:
        raise InputError(
            f"{data.origin} holds {len(data)} sample; two are needed, to calibrate on "
            "one and evaluate on the other, or give --calibration"
        )
    order = np.random.default_rng(seed).permutation(len(data))
    share = max(1, min(CALIBRATION_MOST, int(CALIBRATION_SHARE * len(data))))
    return data.take(sorted(order[:share])), data.take(sorted(order[share:]))


def synthetic(specs: Sequence[TensorSpec], count: int, seed: int) -> Dataset:
    """Draw inputs from the specification: normal floats, small integers, both truth values.

    Unknown axes get length 1 if they are the first, else 16, the same for the same symbol.

    Raises:
        InputError: an input is no tensor of numbers, or of unknown rank.
    """
    rng = np.random.default_rng(seed)
    inputs = {spec.name: [_draw(spec, rng) for _ in range(count)] for spec in specs}
    return Dataset("synthetic inputs", inputs)


def _draw(spec: TensorSpec, rng: np.random.Generator) -> Array:
    if spec.shape is None or spec.dtype in ("str", "unknown"):
        raise InputError(f"no inputs can be made up for {spec}; give --data")
    shape = [
        dim if isinstance(dim, int) else (1 if axis == 0 else 16)
        for axis, dim in enumerate(spec.shape)
    ]
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        raise InputError(f"no inputs can be made up for {spec}; give --data") from None
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 2, shape).astype(dtype)  # valid as an index, a mask and a count
    raise InputError(f"no inputs can be made up for {spec}; give --data")


def _fit(value: Array, spec: TensorSpec, origin: str, purpose: str) -> Array:
    array = np.asarray(value)  # a sample of a one-axis array is a scalar
    if spec.dtype not in (array.dtype.name, "unknown") and not (
        spec.dtype == "str" and array.dtype.kind in "UT"
    ):
        raise InputError(
            f"{purpose} {origin}: {spec.name} is {array.dtype.name}, the model takes {spec.dtype}"
        )
    if spec.shape is None:
        return array
    complete = array[None] if array.ndim + 1 == len(spec.shape) else array
    fits = complete.ndim == len(spec.shape) and all(
        not isinstance(want, int) or have == want or (axis == 0 and have == 1)
        for axis, (have, want) in enumerate(zip(complete.shape, spec.shape, strict=True))
    )
    if not fits:
        raise InputError(
            f"{purpose} {origin}: a sample of {spec.name} has shape {array.shape}, "
            f"the model takes {spec}"
        )
    return complete


def _native(value: Any) -> Array:
    """The same in this machine's byte order, which runtimes take for granted."""
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_npz(path: Path, purpose: str) -> dict[str, Array]:
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                alone = stream.read(6) == b"\x93NUMPY"
            why = "is a single array; write an .npz" if alone else "is no readable .npz"
            raise InputError(f"{purpose} {path} {why}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    # What is damaged shows in the sizes that it claims, in a checksum, or in what is unpacked.
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError,
            RuntimeError) as error:  # fmt: skip
        why = "holds pickled objects" if "allow_pickle" in str(error) else "is no readable .npz"
        raise InputError(f"{purpose} {path} {why}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise InputError(f"{purpose} {path} is a zip archive of something else than arrays")
    return {name: _native(array) for name, array in arrays.items()}


def _from_folder(path: Path, purpose: str) -> Dataset:
    files = sorted(path.glob("*.npz"))
    if not files:
        raise InputError(f"{purpose} {path} holds no .npz file")
    samples = [_read_npz(file, purpose) for file in files]
    labels = [sample.pop(LABELS, None) for sample in samples]
    return _collect(str(path), samples, labels, [file.name for file in files], purpose)


def _from_function(reference: str, purpose: str) -> Dataset:
    function = load_function(reference, purpose)
    samples: list[dict[str, Array]] = []
    labels: list[Array | None] = []
    try:
        for item in call(function, f"{purpose} {reference}"):
            inputs, label = item
            samples.append(_named(inputs))
            labels.append(None if label is None else _native(label))
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{purpose} {reference} must yield (inputs, label): {first_cause(error)}"
        ) from error
    names = [f"sample {i}" for i in range(len(samples))]
    return _collect(reference, samples, labels, names, purpose)


def _named(inputs: Any) -> dict[str, Array]:
    if isinstance(inputs, Mapping):
        return {str(name): _native(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return {f"input{i}": _native(value) for i, value in enumerate(inputs)}
    return {"input0": _native(inputs)}


def _collect(
    origin: str,
    samples: list[dict[str, Array]],
    labels: list[Array | None],
    names: list[str],
    purpose: str,
) -> Dataset:
    if not samples:
        raise InputError(f"{purpose} {origin} gave no samples")
    keys = set(samples[0])
    for name, sample in zip(names, samples, strict=True):
        if set(sample) != keys or not sample:
            raise InputError(
                f"{purpose} {origin}: {name} holds {_names(sample)}, "
                f"{names[0]} holds {_names(keys)}"
            )
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise InputError(
            f"{purpose} {origin}: {unlabelled} of {len(labels)} samples have no labels"
        )
    inputs = {key: [sample[key] for sample in samples] for key in samples[0]}
    return Dataset(origin, inputs, None if unlabelled else _label_array(labels))


def _label_array(labels: Sequence[Array | None]) -> Array:
    arrays = [np.asarray(label) for label in labels]
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    ragged = np.empty(len(arrays), object)
    ragged[:] = arrays
    return ragged


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
