"""Saved weights: find the state_dict in a file and load it into its architecture."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from optimize.errors import InputError, first_cause
from optimize.models.usercode import call, fingerprints

# What data-parallel and compiling wrappers put before every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def foreign_globals(path: Path) -> list[str]:
    """Names that unpickling a ``torch.save`` file would import beyond tensors and containers.

    Nothing is imported or run to find out.
    """
    import torch

    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    allowed = {"collections.OrderedDict"}
    return sorted(
        name for name in _legacy_globals(path) if name not in allowed and not _is_tensor_part(name)
    )


def _is_tensor_part(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    return module in ("torch._utils", "torch") and (
        attribute.endswith("Storage") or attribute.startswith("_rebuild")
    )


def pickled_code(path: Path) -> dict[str, Any]:
    """What the classes of a pickled module depend on, as far as it can be told, as JSON.

    Nothing is imported or run to find out; a file that cannot be read depends on nothing.
    """
    try:
        if not zipfile.is_zipfile(path):
            return fingerprints(_legacy_globals(path))
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(pickles[0]) as stream:
                return fingerprints(_imports(stream))
    except Exception:  # noqa: BLE001  loading it will say what is wrong
        return {}


def _legacy_globals(path: Path) -> set[str]:
    with path.open("rb") as stream:
        # Magic number, protocol version, system information, then the object itself.
        return set().union(*(_imports(stream) for _ in range(4)))


def _imports(stream: IO[bytes]) -> set[str]:
    """The names that one pickle imports."""
    names: set[str] = set()
    recent: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(recent[-2:]))
        elif isinstance(argument, str):
            recent.append(argument)
    return names


def load_checkpoint(path: Path, trusted: bool) -> Any:
    """Unpickle a ``torch.save`` file onto the CPU, with code only if ``trusted``.

    Raises:
        InputError: it would import code and is not trusted, or it cannot be read.
    """
    import torch

    try:
        foreign = [] if trusted else foreign_globals(path)
    except Exception as error:
        raise InputError(f"{path} is no complete PyTorch file: {first_cause(error)}") from error
    if foreign:
        shown = ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else "")
        raise InputError(
            f"{path} is a pickle that would import {shown}; unpickling runs code, "
            "so add --trust-pickle only if you trust who wrote it"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusted)
    except Exception as error:
        raise InputError(f"{path} cannot be unpickled: {first_cause(error)}") from error


def load_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file as a flat state_dict.

    Raises:
        InputError: it is damaged.
    """
    try:
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    except ImportError:
        raise InputError(f"{path} needs the package safetensors; install tailfit[torch]") from None
    except Exception as error:
        raise InputError(f"{path} is no complete safetensors file: {first_cause(error)}") from error


def build(factory: Callable[[], Any], reference: str) -> Any:
    """Call the user's ``--arch`` factory and check that it gives a module.

    Raises:
        InputError: it raised, or gave something else.
    """
    import torch

    module = call(factory, f"--arch {reference}")
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"--arch {reference} must return a torch.nn.Module, it gave {type(module).__name__}"
        )
    return module


def load_into(module: Any, saved: Mapping[str, Any], path: Path) -> Any:
    """Load the state_dict found in ``saved`` into ``module``, in evaluation mode.

    The dictionary may be nested under any key and prefixed by a wrapper's name; the candidate
    that shares most keys with the module is taken.

    Raises:
        InputError: none fits; the message names keys that are missing, unexpected or of another
            shape.
    """
    wanted = module.state_dict()
    candidates = list(_candidates(saved))
    if not candidates:
        raise InputError(f"{path} holds no state_dict: no dictionary of tensors is in it")
    best = max(candidates, key=lambda state: len(wanted.keys() & state.keys()))
    problems = _mismatches(wanted, best)
    if problems:
        raise InputError(f"{path} does not fit the architecture: {problems}")
    module.load_state_dict(best)
    return module.eval()


def _candidates(saved: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    tensors = {str(k): v for k, v in saved.items() if isinstance(v, torch.Tensor)}
    if tensors:
        yield tensors
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in tensors):
                yield from _candidates({k[len(prefix) :]: v for k, v in tensors.items()})
    for value in saved.values():
        if isinstance(value, torch.nn.Module):
            yield dict(value.state_dict())
        elif isinstance(value, Mapping):
            yield from _candidates(value)


def _mismatches(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    parts = []
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shaped = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    for label, keys in (("missing", missing), ("unexpected", unexpected), ("shape", shaped)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            parts.append(f"{label} {', '.join(keys[:3])}{more}")
    return "; ".join(parts)
