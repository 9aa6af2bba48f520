"""Installed versions of what a result depends on."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "tailfit onnxruntime onnx onnxscript torch transformers numpy openvino nncf neural-compressor "
    "torchao torch-pruning onnxruntime-tools"
).split()


def versions() -> dict[str, str]:
    """The version of each package that is installed, by name."""
    return {name: found for name in _PACKAGES if (found := _version(name)) is not None}


@cache  # a run asks for them at every stage
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
