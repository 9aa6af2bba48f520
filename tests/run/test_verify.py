"""A second verdict: on what is there, asked as it was, and on nothing that the folder could forge."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper

from optimize.budgets.budget import Budget, Floor
from optimize.cache.store import Store
from optimize.errors import InputError
from optimize.observer import Silent
from optimize.passes.chain import Chain
from optimize.request import Request
from optimize.results.output import MANIFEST, REPORT
from optimize.run.pipeline import run
from optimize.run.verify import Overrides, verify

Change = Callable[[dict[str, Any]], object]
METRIC = "def good(outputs, labels):\n    return 1.0\n"


@pytest.fixture(scope="module")
def made(
    digits_onnx: Path, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A result behind a link to a folder, and its notes; the cache could not be written."""
    place = tmp_path_factory.mktemp("made")
    (place / "real" / "deep").mkdir(parents=True)
    (place / "link").symlink_to(place / "real" / "deep")
    (place / "met.py").write_text(METRIC)
    (place / "cache").mkdir()
    (place / "cache" / "v1").touch()
    shutil.copy(digits_onnx, place / "net.onnx")
    result = run(
        Request(
            place / "net.onnx", (Budget.parse("p50=100s"),), floor=Floor.parse("drop=0.1"),
            data=str(digits_npz), metric=f"{place / 'met.py'}:good",
            chains=(Chain.parse("source"),), threads=1, out=place / "link" / "out",
            cache=place / "cache", max_samples=600,
        )
    )  # fmt: skip
    return place / "link" / "out", "; ".join(result.report.notes)


def test_files_are_found_from_behind_a_link(made: tuple[Path, str]) -> None:
    report = verify(made[0], Overrides()).report
    assert report.exit_code == 0
    assert [row.chain for row in report.variants] == ["source", "source as kept"]


def test_the_written_report_names_no_folder_of_this_machine(made: tuple[Path, str]) -> None:
    folder, told = made
    assert str(folder.parent.parent) in told  # who ran it may know
    written = (folder / REPORT).read_text()
    assert "cache not written" in written
    assert str(folder.parent.parent) not in written


@pytest.mark.parametrize(
    ("metric", "same"),
    [("{}/met.py:good", True), ("{}/met.py:other", False), ("{}/other.py:good", False),
     ("top1", False)],
)  # fmt: skip
def test_another_folder_may_hold_the_metric_but_not_another_metric(
    made: tuple[Path, str], tmp_path: Path, metric: str, same: bool
) -> None:
    (tmp_path / "met.py").write_text(METRIC)
    asked = Overrides(metric=metric.format(tmp_path), threads=0)  # which is refused afterwards
    with pytest.raises(InputError) as found:
        verify(made[0], asked)
    assert ("was judged by met.py:good;" in str(found.value)) is not same
    assert ("--threads 0 is not at least 1" in str(found.value)) is same


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(files=list(m["files"])), "files: "),
        (lambda m: m.pop("arguments"), "arguments: Field required"),
        (lambda m: m["arguments"].update(model=3), "arguments.model: "),
        (lambda m: m["files"].pop(REPORT), "report.json is missing or was changed"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    made: tuple[Path, str], tmp_path: Path, change: Change, reason: str
) -> None:
    folder = shutil.copytree(made[0], tmp_path / "copy")
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=reason):
        verify(folder, Overrides())


def test_a_folder_cannot_have_a_pickle_run(
    made: tuple[Path, str], tmp_path: Path, digits_net: Any
) -> None:
    import torch

    folder = shutil.copytree(made[0], tmp_path / "copy")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["arguments"]["trust_pickle"] = True
    (folder / MANIFEST).write_text(json.dumps(manifest))
    torch.save(digits_net, tmp_path / "net.pt")
    source = str(tmp_path / "net.pt")
    data = str(made[0].resolve().parent / manifest["arguments"]["data"])
    metric = str(made[0].parent.parent / "met.py:good")
    with pytest.raises(InputError, match="add --trust-pickle only if you trust who wrote it"):
        verify(folder, Overrides(source=source, data=data, metric=metric))


def test_another_source_does_not_lower_the_floor(
    digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    shutil.copy(digits_onnx, tmp_path / "net.onnx")
    given = Request(
        tmp_path / "net.onnx", (Budget.parse("p50=100s"),), floor=Floor.parse("drop=0.05"),
        data=str(digits_npz), chains=(Chain.parse("source"),), threads=1, max_samples=300,
        confidence=0.9, out=tmp_path / "out",
    )  # fmt: skip
    first = run(given).report
    model = onnx.load(str(digits_onnx))
    weights = next(w for w in model.graph.initializer if len(w.dims) == 2)
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(values * -1, weights.name))
    onnx.save(model, str(tmp_path / "worse.onnx"))
    report = verify(tmp_path / "out", Overrides(source=str(tmp_path / "worse.onnx"))).report
    assert first.variants[0].accuracy is not None
    assert report.floor is not None
    assert report.floor.kind == "absolute"
    assert report.floor.value == pytest.approx(first.variants[0].accuracy.value - 0.05)
    assert any(note.startswith("the source is not that of the first") for note in report.notes)
    assert report.exit_code == 0


def test_an_output_may_be_named_that_was_not(
    made: tuple[Path, str], digits_npz: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(made[0], folder)
    report = json.loads((folder / REPORT).read_text())
    manifest = json.loads((folder / MANIFEST).read_text())
    report["floor"]["metric"] = manifest["arguments"]["metric"] = "top1"
    (folder / REPORT).write_text(json.dumps(report))
    manifest["files"][REPORT] = hashlib.sha256((folder / REPORT).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is not at least 1"):
        verify(folder, Overrides(metric="top1:logits", threads=0, data=str(digits_npz)))
    with pytest.raises(InputError, match="was judged by top1;"):
        verify(folder, Overrides(metric="f1:logits", threads=0))


def test_a_model_that_lacks_an_output_is_not_like_the_source(
    made: tuple[Path, str], digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    proto = onnx.load(digits_onnx)
    first = proto.graph.output[0]
    proto.graph.node.append(helper.make_node("Identity", [first.name], ["again"]))
    proto.graph.output.add().CopyFrom(first)
    proto.graph.output[1].name = "again"
    onnx.save(proto, tmp_path / "two.onnx")
    report = run(
        Request(
            tmp_path / "two.onnx", (Budget.parse("p50=100s"),), data=str(digits_npz),
            metric="cosine", threads=1, as_is=True, rivals=(made[0],), max_samples=100,
        )
    ).report  # fmt: skip
    assert report.variants[1].status == "failed"
    assert f"its outputs are {first.name}, the source's {first.name}, again" in (
        report.variants[1].reason
    )


def test_a_source_that_changes_under_a_run_gives_no_result(
    digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    """Nor is anything kept that was made of the other."""
    source, cache = tmp_path / "net.onnx", tmp_path / "cache"
    shutil.copy(digits_onnx, source)
    request = Request(
        source, (Budget.parse("p50=100s"),), data=str(digits_npz), threads=1, max_samples=100,
        chains=(Chain.parse("fold,fuse"),), out=tmp_path / "out", cache=cache,
    )  # fmt: skip

    class Trainer(Silent):
        """Writes the next checkpoint while the first is being optimized."""

        def stage(self, name: str, total: int) -> None:
            if name == "build":
                source.write_bytes(source.read_bytes())

    with pytest.raises(InputError, match=r"net\.onnx changed while it was in use"):
        run(request, Trainer())
    assert not (tmp_path / "out").exists()
    with Store(cache) as store:
        assert not [entry for entry in store.entries() if "fold" in entry.meta.get("what", "")]
