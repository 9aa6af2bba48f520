"""Functions that a user names as ``file.py:function``: architectures, data, metrics."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import itertools
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from optimize.errors import InputError, first_cause


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form ``file.py:function``."""
    file, colon, name = text.rpartition(":")
    return bool(colon) and file.endswith(".py") and name.isidentifier()


def load_function(reference: str, purpose: str) -> Callable[..., Any]:
    """Import the file and return the function.

    The file's folder is importable while it is loaded, as when it is run as a script.

    Args:
        reference: ``file.py:function``.
        purpose: the option it was given to, for messages.

    Raises:
        InputError: no such file or function, or the file raised while it was imported.
    """
    if not is_reference(reference):
        raise InputError(f"{purpose} {reference!r} is not of the form file.py:function")
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"{purpose} {reference!r}: {file} does not exist")
    function = getattr(_module(path.resolve(), purpose), name, None)
    if not callable(function):
        raise InputError(f"{purpose} {reference!r}: {file} defines no function {name!r}")
    found: Callable[..., Any] = function
    return found


def check_function(reference: str, purpose: str) -> None:
    """Raise what :func:`load_function` would, and return nothing that must be pickled."""
    load_function(reference, purpose)


def call(function: Callable[..., Any], what: str, *args: Any) -> Any:
    """Call a user's function and translate whatever it raises.

    Raises:
        InputError: naming ``what`` and the function's own error.
    """
    try:
        return function(*args)
    except (Exception, SystemExit) as error:  # an exit would end the run as if it had succeeded
        raise InputError(f"{what} raised {first_cause(error)}") from error


def fingerprint(reference: str) -> dict[str, Any]:
    """What a user's function depends on as far as it can be told, as JSON.

    Its file's content; name, size and time of change of the code and data beside it, which it may
    import or load, and of whatever else lies there and is named in that code, of a folder all that
    is below it, the first ``MOST_FILES``; and every distribution that is installed.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file).resolve()
    beside = [
        (str(entry.relative_to(path.parent)), entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in _beside(path)
    ]
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return {"function": name, "content": content, "beside": beside, "installed": _installed()}


def fingerprints(modules: Iterable[str]) -> dict[str, Any]:
    """The same for modules that lie on the path and belong to no distribution, by name.

    None of them is imported; what is installed or comes with Python is left out.
    """
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    found: dict[str, Any] = {"installed": _installed()}
    for name in sorted({module.partition(".")[0] for module in modules}):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is None or spec.origin in ("built-in", "frozen"):
            continue
        folders = [*(spec.submodule_search_locations or ())]
        if not str(spec.origin or folders[0]).startswith(installed):
            found[name] = [
                [str(file), file.stat().st_size, file.stat().st_mtime_ns]
                for folder in folders
                for file in _below(Path(folder))
                if file.suffix in _CODE_OR_DATA
            ] or fingerprint(f"{spec.origin}:")
    return found


def _beside(path: Path) -> list[Path]:
    """Files in the same folder, and code in its sub-packages, that a file may depend on."""
    entries = sorted(path.parent.glob("*"))
    code = "\n".join(e.read_text(errors="ignore") for e in entries if e.suffix == ".py")
    likely = [entry for entry in entries if entry.name in code]  # of thousands, quickly
    named = {entry for entry in likely if re.search(rf"\b{re.escape(entry.name)}\b", code)}
    own = {e for e in entries if e.stem == path.stem}  # such as metric.txt of metric.py
    found = {e for e in entries if e.is_file() and (e.suffix in _CODE_OR_DATA or e in named | own)}
    for folder in named - found:
        if not (folder / "manifest.json").is_file():  # a result folder changes with every run
            found.update(itertools.islice(_below(folder), MOST_FILES))
    return sorted(found - {path})


def _below(folder: Path) -> Iterator[Path]:
    """Files in a folder and all below, in one order; what Python writes there is left out."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(place, name) for name in sorted(files))


def code_digest(module: Any) -> str:
    """SHA-256 over the files that define the classes of a torch module and of all in it."""
    files = set()
    for part in module.modules():
        with contextlib.suppress(TypeError, OSError):
            files.add(inspect.getsourcefile(type(part)))
    contents = {hashlib.sha256(Path(f).read_bytes()).digest() for f in files if f}
    return hashlib.sha256(b"".join(sorted(contents))).hexdigest()


MOST_FILES = 10_000  # of a folder that is named in code
_CONTENT = "__optimize_content__"  # of the file, when a module was made of it
_CODE_OR_DATA = frozenset(
    ".py .so .npy .npz .pt .pth .pkl .pickle .joblib .safetensors .onnx .csv .tsv .parquet "
    ".yaml .yml .toml .ini .cfg .h5 .hdf5 .bin .model".split()
)


def _installed() -> str:
    """A digest of the installed distributions: their folders carry name and version."""
    names = {
        entry.name
        for folder in map(Path, filter(None, sys.path))
        if folder.is_dir()
        for entry in folder.glob("*-info")
    }
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def _module(path: Path, purpose: str) -> Any:
    # Registered under the bare stem, so that pickles and dataclasses made there resolve.
    name, content = path.stem, hashlib.sha256(path.read_bytes()).hexdigest()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        if getattr(known, _CONTENT, content) == content:
            return known
        known = None  # edited since, in a process that lives longer than a run
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{purpose}: {path.name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    setattr(module, _CONTENT, content)
    if known is None:
        sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if known is None:
            del sys.modules[name]
        raise InputError(f"{purpose}: {path.name} raised {first_cause(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
