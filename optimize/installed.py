"""Installed versions of what a result depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "tailfit onnxruntime onnx onnxscript torch transformers numpy openvino nncf neural-compressor "
    "torchao torch-pruning onnxruntime-tools"
).split()


def versions() -> dict[str, str]:
    """The version of each package that is installed, by name."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
