"""Results of passes kept between runs: the same work on the same input is not done twice."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from optimize.entries import Entry, key_of
from optimize.models.model import Model, file_digest
from optimize.models.run import Difference
from optimize.models.usercode import is_reference
from optimize.passes.base import Context, Pass, PassResult
from optimize.store import Store

Execute = Callable[[Pass, Model, Context], PassResult]


class Remembered:
    """Runs passes, or takes their results from a store.

    The key is all that a result depends on: the model's digest, the pass, its version and source
    file, files of the user's that it names, the data it sees, the seed, the device's instruction
    sets, the runtime where that matters, budgets and device where candidates are timed, and the
    versions of the libraries.
    """

    def __init__(self, store: Store, execute: Execute, versions: Mapping[str, str]) -> None:
        """Wrap ``execute``."""
        self._store = store
        self._execute = execute
        self._versions = dict(versions)
        self._digests: dict[int, str] = {}

    def __call__(self, step: Pass, model: Model, context: Context) -> PassResult:
        """Return the pass's result; of several runs that want it, one works and the others wait.

        Raises:
            NotApplicable, PassFailed: as the pass raises them; they are not kept.
        """
        key = key_of(self._parts(step, model, context))
        with self._store.building(key):
            entry = self._store.get(key)
            if entry is not None:
                return _recall(entry, model)
            result = self._execute(step, model, context)
            late = context.deadline is not None and time.monotonic() >= context.deadline
            if not late:  # training that was cut short is not what the chain asks for
                self._keep(key, result, model, context, f"{step} of {model.digest[:12]}")
            return result

    def _parts(self, step: Pass, model: Model, context: Context) -> dict[str, Any]:
        texts = [str(getattr(step, field.name)) for field in fields(step)]
        files = [text.rpartition(":")[0] for text in texts if is_reference(text)]
        teacher = context.teacher
        return {
            "model": model.identity,
            "pass": str(step),
            "version": step.version,
            "source": _source_digest(step),
            "files": [file_digest(Path(f)) if Path(f).is_file() else "missing" for f in files],
            "samples": self._digest(context.samples),
            "calibration": self._digest(context.calibration),
            "training": self._digest(context.training) if "torch" in step.takes else None,
            "teacher": teacher.digest if teacher and "torch" in step.takes else None,
            "seed": context.seed,
            "isa": sorted(context.isa),
            "runtime": context.runtime if step.tailored else None,
            "bench": dict(context.bench.identity) if step.times and context.bench else None,
            "versions": self._versions,
        }

    def _digest(self, data: Any) -> str | None:
        if data is None:
            return None
        if id(data) not in self._digests:
            self._digests[id(data)] = data.digest
        return self._digests[id(data)]

    def _keep(
        self, key: str, result: PassResult, model: Model, context: Context, what: str
    ) -> None:
        made = result.model
        new = made.digest != model.digest
        names = [_relative(file, made).as_posix() for file in made.files] if new else []
        meta = {
            "what": what,
            "changed": result.changed,
            "notes": list(result.notes),
            "seconds": result.seconds,
            "difference": _plain(result.difference),
            "format": made.format,
            "config": dict(made.config),
            "members": names,
        }
        if not new:
            self._store.put(key, b"", meta)
            return
        folder = context.folder / "kept"
        shutil.rmtree(folder, ignore_errors=True)
        for file, name in zip(made.files, names, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(file, folder / name)
        self._store.put(key, folder, meta)
        shutil.rmtree(folder, ignore_errors=True)


def _recall(entry: Entry, model: Model) -> PassResult:
    meta = entry.meta
    made = model
    if meta["members"]:
        members = [entry.path / name for name in meta["members"]]
        onnx = meta["format"] == "onnx"
        made = Model.read(members[0]) if onnx else Model.of(
            meta["format"], members, model.signature
        )  # fmt: skip
    difference = meta["difference"]
    return PassResult(
        made.configured(meta["config"]),
        meta["changed"],
        tuple(meta["notes"]),
        0.0,
        None if difference is None else Difference(**difference),
    )


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {name: value if isinstance(value, str) else float(value)
            for name, value in asdict(difference).items()}  # fmt: skip


def _relative(file: Path, model: Model) -> Path:
    return file.relative_to(model.path.parent)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _source_digest(step: Pass) -> str:
    """Of the file that defines the pass, so that a plug-in's change is seen without a version."""
    import inspect

    file = inspect.getsourcefile(type(step))
    return file_digest(Path(file)) if file else ""
