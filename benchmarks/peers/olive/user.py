"""What Olive is given of the user's: the data, and the metric. Runs in Olive's environment."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from olive.data.registry import Registry
from torch.utils.data import Dataset


class Samples(Dataset):  # type: ignore[type-arg, misc]
    """Samples of an .npz file: pairs of a dictionary of inputs and a label."""

    def __init__(self, file: str, count: int | None) -> None:
        """Read the first ``count`` samples; all of them for None."""
        arrays = np.load(file)
        self.inputs = {k: arrays[k][:count] for k in arrays.files if k != "labels"}
        self.labels = arrays["labels"][:count]

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Any]:
        """One, without the batch axis."""
        return {k: v[index] for k, v in self.inputs.items()}, self.labels[index]


@Registry.register_dataset()
def samples(file: str, count: int | None = None, **_: Any) -> Samples:
    """Olive's hook for data."""
    return Samples(file, count)


def accuracy(model: Any, device: Any, execution_providers: Any) -> float:
    """The metric that ours judges by, on the same samples, one a call."""
    data = Samples(os.environ["EVALUATION"], None)
    session = model.prepare_session(
        {"session_options": {"intra_op_num_threads": int(os.environ["THREADS"])}},
        device,
        execution_providers,
    )
    name = session.get_outputs()[0].name
    outputs = [
        session.run([name], {k: v[i : i + 1] for k, v in data.inputs.items()})[0][0]
        for i in range(len(data))
    ]
    return float(_metric()(outputs, data.labels))


def _metric() -> Any:
    """The function named by METRIC, ``file.py:function``; top-1 accuracy without."""
    reference = os.environ.get("METRIC", "")
    if not reference:
        return lambda outputs, labels: np.mean(np.argmax(outputs, axis=-1) == labels)
    file, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
