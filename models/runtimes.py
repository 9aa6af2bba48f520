"""The libraries that can serve a model, and what each of them loads."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from optimize.errors import InputError, nearest

Format = Literal["onnx", "openvino", "inductor", "torch"]
DEFAULT_RUNTIME = "onnxruntime"
FORMATS: dict[Format, str] = {
    "onnx": "ONNX graphs",
    "openvino": "OpenVINO models",
    "inductor": "compiled packages",
    "torch": "torch modules (weights with --arch, or a Hugging Face folder)",
}


@dataclass(frozen=True)
class Runtime:
    """A library that serves models.

    Attributes:
        name: as chains and options write it.
        title: as sentences write it.
        package: the module that must be importable.
        extra: what to install for it.
        formats: what it loads, the likeliest first.
        provider: where it runs a model on the CPU, in its own words.
    """

    name: str
    title: str
    package: str
    extra: str
    formats: tuple[Format, ...]
    provider: str

    @property
    def installed(self) -> bool:
        """Whether its package can be found; it is not imported."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def missing(self) -> str:
        """What to say where it is not installed."""
        return f"{self.title} is not installed; install tailfit[{self.extra}]"


_ALL = (
    Runtime(DEFAULT_RUNTIME, "ONNX Runtime", "onnxruntime", "", ("onnx",), "CPUExecutionProvider"),
    Runtime("openvino", "OpenVINO", "openvino", "openvino", ("openvino", "onnx"), "CPU"),
    Runtime("inductor", "torch's AOTInductor", "torch", "torch", ("inductor",), "cpu"),
)


def runtime_names() -> list[str]:
    """Names of all runtimes, the default first."""
    return [runtime.name for runtime in _ALL]


def find_runtime(name: str) -> Runtime:
    """Look a runtime up.

    Raises:
        InputError: there is none of that name.
    """
    for runtime in _ALL:
        if runtime.name == name:
            return runtime
    raise InputError(f"there is no runtime {name!r}; {nearest(name, runtime_names())}")
