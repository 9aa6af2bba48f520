"""Exports and results of passes kept between runs: the same work is not done twice."""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from optimize.cache.entries import Entry, key_of
from optimize.cache.store import Store
from optimize.errors import NotApplicable, NotNow
from optimize.models.checkpoint import pickled_code
from optimize.models.data import Dataset
from optimize.models.export import Exported, load_and_export
from optimize.models.model import Model, TensorSpec, file_digest, link_or_copy, specs
from optimize.models.run import Difference
from optimize.models.source import Source
from optimize.models.usercode import fingerprint, is_reference
from optimize.passes.base import Context, Pass, PassResult

Execute = Callable[[Pass, Model, Context], PassResult]
Export = Callable[..., Exported]


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
            NotApplicable: as the pass raised it, now or, unless it times or another moment may be
                another answer, when it was tried before.
            PassFailed: as the pass raises it; a failure may pass, so it is not kept.
        """
        key = key_of(self._parts(step, model, context))
        with self._store.turns.building(key, context.deadline):
            entry = self._store.get(key)
            if entry is not None:
                return _recall(entry, model)
            what = f"{step} of {model.digest[:12]}"
            try:
                with self._store.turns.turn(shared=not step.times, deadline=context.deadline):
                    result = self._execute(step, model, context)
            except NotApplicable as refusal:
                # Another moment may be another answer.
                if not (context.late or step.times or isinstance(refusal, NotNow)):
                    self._store.put(key, b"", {"what": what, "refusal": str(refusal)})
                raise
            if not result.cut_short:  # it is not what the chain asks for
                self._keep(key, result, model, context, what)
            return result

    def _parts(self, step: Pass, model: Model, context: Context) -> dict[str, Any]:
        texts = [str(getattr(step, field.name)) for field in fields(step)]
        teacher = context.teacher
        return {
            "model": model.identity,
            "pass": str(step),
            "version": step.version,
            "source": _source_digest(step),
            "user code": [fingerprint(text) for text in texts if is_reference(text)],
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
        meta = {
            "what": what,
            "changed": result.changed,
            "notes": list(result.notes),
            "seconds": result.seconds,
            "difference": _plain(result.difference),
            "config": dict(made.config),
            "model": made.describe() if new else None,
        }
        if not new:
            self._store.put(key, b"", meta)
            return
        with _gathered([made], context.folder / "kept") as folder:
            self._store.put(key, folder, meta, link=_linkable([made]))


def _recall(entry: Entry, model: Model) -> PassResult:
    """The result that an entry holds.

    Raises:
        NotApplicable: the pass refused the model.
    """
    meta = entry.meta
    if "refusal" in meta:
        raise NotApplicable(meta["refusal"])
    made = Model.described(meta["model"], entry.path) if meta["model"] else model
    return PassResult(
        made.configured(meta["config"]),
        meta["changed"],
        tuple(meta["notes"]),
        0.0,
        _difference(meta["difference"]),
    )


class RememberedExport:
    """Loads and exports a source, or takes the result from a store."""

    def __init__(
        self,
        store: Store,
        export: Export,
        versions: Mapping[str, str],
        deadline: float | None = None,
    ) -> None:
        """Wrap ``export``, which takes what :func:`load_and_export` takes.

        From ``deadline`` on, on ``time.monotonic``, no other run is waited for.
        """
        self._store = store
        self._export = export
        self._versions = dict(versions)
        self._deadline = deadline

    def __call__(
        self,
        source: Source,
        arch: str | None,
        trust_pickle: bool,
        probe: Dataset | None,
        inputs: Sequence[TensorSpec],
        folder: Path,
    ) -> Exported:
        """See :func:`load_and_export`; what it raises is not kept."""
        if source.kind == "onnx":  # taken as it is
            return load_and_export(source, arch, trust_pickle, probe, inputs, folder)
        key = key_of(
            {
                "export": _code_digest(),
                "source": [source.kind, source.digest],
                "arch": [str(Path(arch).resolve()), fingerprint(arch)] if arch else None,
                "trust": pickled_code(source.path) if trust_pickle else None,
                "probe": probe.digest if probe else None,
                "inputs": list(map(str, inputs)),
                "versions": self._versions,
            }
        )
        with self._store.turns.building(key, self._deadline):
            entry = self._store.get(key)
            if entry is not None:
                return _exported(entry)
            with self._store.turns.turn(shared=True, deadline=self._deadline):
                exported = self._export(source, arch, trust_pickle, probe, inputs, folder)
            self._keep(key, exported, folder, f"export of {source.digest[:12]}")
            return exported

    def _keep(self, key: str, exported: Exported, folder: Path, what: str) -> None:
        models = [exported.model, *filter(None, [exported.program])]
        meta = {
            "what": what,
            "route": exported.route,
            "difference": _plain(exported.difference),
            "specs": [asdict(spec) for spec in exported.specs],
            "notes": list(exported.notes),
            "models": [model.describe() for model in models],
        }
        with _gathered(models, folder / "kept") as kept:
            self._store.put(key, kept, meta, link=_linkable(models))


def _code_digest() -> str:
    """Of what loads sources and exports them."""
    return file_digest(*sorted(Path(inspect.getfile(load_and_export)).parent.glob("*.py")))


def _exported(entry: Entry) -> Exported:
    meta = entry.meta
    model, *program = (Model.described(told, entry.path) for told in meta["models"])
    return Exported(
        model=model,
        route=meta["route"],
        difference=_difference(meta["difference"]) or Difference(),
        specs=specs(meta["specs"]),
        notes=tuple(meta["notes"]),
        program=program[0] if program else None,
    )


@contextlib.contextmanager
def _gathered(models: Sequence[Model], folder: Path) -> Iterator[Path]:
    """A folder with links to all files of models, by their names within their own folders."""
    shutil.rmtree(folder, ignore_errors=True)
    for model in models:
        for file in model.files:
            place = folder / file.relative_to(model.path.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _linkable(models: Sequence[Model]) -> bool:
    """Whether links will do: onnx refuses external data that has more than one name."""
    return all(len(model.files) == 1 for model in models if model.format == "onnx")


def _difference(told: Mapping[str, Any] | None) -> Difference | None:
    return None if told is None else Difference(**told)


def _plain(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {name: value if isinstance(value, str) else float(value)
            for name, value in asdict(difference).items()}  # fmt: skip


def _source_digest(step: Pass) -> str:
    """Of the file that defines the pass, so that a plug-in's change is seen without a version."""
    file = inspect.getsourcefile(type(step))
    return file_digest(Path(file)) if file else ""
