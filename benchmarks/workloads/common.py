"""What the workload modules share: their command line, ONNX export, and WordNet's glosses."""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.workloads.fetch import debian


def output_folder(name: str, description: str | None) -> Path:
    """Parse the command line (one argument, OUT) and return OUT/name, created."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path, help="folder to write the workload's folder into")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder: Path = arguments.out / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_source(path: Path) -> ModuleType:
    """Import a Python file by its path, without touching sys.path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export_onnx(
    module: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: list[str],
    dynamic: dict[str, dict[int, str]],
    path: Path,
) -> None:
    """Export to one ONNX file by the dynamo exporter, with named inputs and dynamic axes."""
    torch.onnx.export(
        module.eval(),
        (),
        str(path),
        kwargs=inputs,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=dynamic,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def noun_glosses(seed: int = 0) -> list[tuple[int, str]]:
    """Return WordNet's distinct noun glosses as (lexicographer class, text), shuffled.

    The class is the lexicographer file's number (3 to 28: act, animal, artifact, ...); the
    text is the definition, without its quoted examples.
    """
    source = debian("wordnet-base") / "usr" / "share" / "wordnet" / "data.noun"
    found: dict[str, int] = {}
    for line in source.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):
            continue  # the licence's lines
        fields, _, gloss = line.partition(" | ")
        text = gloss.split('"')[0].strip().rstrip(";").strip()
        if text:
            found.setdefault(text, int(fields.split()[1]))
    pairs = [(label, text) for text, label in sorted(found.items())]
    random.Random(seed).shuffle(pairs)
    return pairs


def write_text(path: Path, text: str) -> None:
    """Write a generated text file."""
    path.write_text(text, encoding="utf-8")
