"""The peak memory of a whole ``optimize`` run on a large model, beside its target.

Memory is the sum of the proportional set sizes (PSS: shared pages are split among those that share
them) of the command and all its descendants, read every 100 ms; pages of mapped files count, the
kernel's cache of files that nobody maps does not. Target: at most 2.5 times the model's size.

    python benchmarks/large/peak.py FOLDER [--bytes 2.5e9] [--chain CHAIN ...]

The model is written to FOLDER/source if it is not there; FOLDER needs six times its size. Some
five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.large.make import make

CHAINS = ("fold", "fold,int8{mode=weights}")
TARGET = 2.5
EVERY_S = 0.1


@dataclass
class Peak:
    """The most that a process tree held at one moment.

    Attributes:
        total: bytes.
        parts: bytes of each process then, by what it is and its number.
        at_s: seconds since the start.
    """

    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    at_s: float = 0.0


def main() -> None:
    """Run the command on each chain and print peak over size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=float, default=2.5e9)
    parser.add_argument("--chain", action="append")
    given = parser.parse_args()
    source = given.folder / "source"
    model = source / "model.onnx"
    if not model.is_file():
        make(source, int(given.bytes))
    size = sum(file.stat().st_size for file in source.glob("model.onnx*"))
    met = [_judge(model, size, chain, given.folder) for chain in given.chain or CHAINS]
    sys.exit(0 if all(met) else 1)


def _judge(model: Path, size: int, chain: str, folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        result = Path(scratch) / "result"
        peak, seconds, code = watch(_command(model, chain, Path(scratch), result), Path(scratch))
        rows = _rows(result)
    ratio = peak.total / size
    held = ", ".join(f"{name} {part / 1e9:.2f}" for name, part in peak.parts.items())
    print(f"{chain}: exit code {code}, {seconds:.0f} s; model {size / 1e9:.2f} GB")
    for row in rows:
        print(f"  {row['chain']}: {row['status']} {row['reason'] or ''}")
    print(f"  peak {peak.total / 1e9:.2f} GB at {peak.at_s:.1f} s, in GB: {held}")
    met = ratio <= TARGET and code == 0
    print(f"  peak / size {ratio:.2f}, target {TARGET}: {'met' if met else 'MISSED'}", flush=True)
    return met


def _command(model: Path, chain: str, scratch: Path, result: Path) -> list[str]:
    options = {
        "--data": model.parent / "data.npz", "--budget": "p50=60s", "--chain": chain,
        "--floor": "cosine=0.9", "--threads": 2, "--out": result, "--cache": scratch / "cache",
    }  # fmt: skip
    texts = [str(text) for pair in options.items() for text in pair]
    return [sys.executable, "-m", "optimize", str(model), *texts]


def watch(command: list[str], folder: Path) -> tuple[Peak, float, int]:
    """Run a command, and return its tree's peak, its seconds and its exit code.

    Temporary files go to ``folder``, as they would to a disk, where ``/tmp`` may be memory.
    """
    log = folder / "log.txt"
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "TMPDIR": str(folder)}
    peak, started = Peak(), time.monotonic()
    with log.open("wb") as sink:
        process = psutil.Popen(command, stdout=sink, stderr=sink, env=environment)
        while process.poll() is None:
            now = dict(_held(process))
            if sum(now.values()) > peak.total:
                peak = Peak(sum(now.values()), now, time.monotonic() - started)
            time.sleep(EVERY_S)
    if process.returncode:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
    return peak, time.monotonic() - started, process.returncode


def _held(root: psutil.Process) -> Iterator[tuple[str, int]]:
    """The proportional set size of a process and all its descendants."""
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            what = _what(process.cmdline())
        except (OSError, psutil.Error):
            continue  # it has just ended
        found = next((line for line in lines if line.startswith("Pss:")), None)
        if found:
            yield f"{what} {process.pid}", int(found.split()[1]) * 1024


def _what(command: list[str]) -> str:
    text = " ".join(command)
    if "worker.py" in text:
        return "worker"
    return "child" if "optimize.processes.child" in text else "command"


def _rows(result: Path) -> list[dict[str, Any]]:
    report = result / "report.json"
    return json.loads(report.read_text())["variants"] if report.is_file() else []


if __name__ == "__main__":
    main()
