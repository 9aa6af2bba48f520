"""What is prepared for judging: shares, batches, metric, floor, and what a reader must know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from optimize.budgets.budget import Budget, Floor
from optimize.errors import InputError, NotApplicable, TimeIsUp
from optimize.models.export import load_and_export
from optimize.models.model import TensorSpec
from optimize.models.source import detect
from optimize.passes.base import Context
from optimize.passes.chain import Chain
from optimize.prepare import Prepared, prepare
from optimize.request import Request

if TYPE_CHECKING:
    from conftest import Digits, GraphMaker

BUDGETS = (Budget.parse("p99=1s"),)


Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(digits_onnx: Path, digits_npz: Path, tmp_path: Path) -> Prepare:
    """Prepare the digits network on its data, with changes to the request."""

    def run(**changes: Any) -> Prepared:
        given = {"model": digits_onnx, "data": str(digits_npz), "budgets": BUDGETS} | changes
        request = Request(**given)
        return prepare(request, detect(request.model), tmp_path, load_and_export)

    return run


def images(data: Any) -> set[bytes]:
    return {array.tobytes() for array in data.inputs["image"]}


def test_a_fifth_calibrates_the_rest_judges_and_all_is_timed(
    prepared: Prepare, digits: Digits
) -> None:
    result = prepared()
    assert result.calibration is not None
    assert (len(result.calibration), len(result.evaluation), len(result.latency)) == (20, 80, 100)
    assert not images(result.calibration) & images(result.evaluation)
    assert images(result.calibration) | images(result.evaluation) == images(result.latency)
    assert images(result.latency) == {image[None].tobytes() for image in digits.image[:100]}


def test_the_report_counts_the_shares(prepared: Prepare) -> None:
    data = prepared().data
    assert (data.samples, data.latency_samples) == (100, 100)
    assert (data.evaluation_samples, data.calibration_samples) == (80, 20)
    assert (data.origin, data.synthetic, data.batch) == ("digits.npz", False, 1)


def test_samples_with_nan_calibrate_nothing(prepared: Prepare, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    x = onnx.helper.make_tensor_value_info("x", 1, ["n", 4])
    y = onnx.helper.make_tensor_value_info("y", 1, ["n", 4])
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), model)
    values = np.ones((10, 4), np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    spoilt = 2 * values
    spoilt[2, 1] = np.nan
    np.savez(tmp_path / "spoilt.npz", x=spoilt)
    given = {"model": model, "data": str(tmp_path / "data.npz")}
    result = prepared(**given, calibration=str(tmp_path / "spoilt.npz"))
    assert result.calibration is not None
    assert len(result.calibration) == 9
    assert result.training is not None
    assert len(result.training) == 9
    assert "1 of 10 samples to calibrate on hold NaN: left out" in result.notes
    np.savez(tmp_path / "spoilt.npz", x=spoilt * np.nan)
    spoilt_all = prepared(**given, calibration=str(tmp_path / "spoilt.npz"))
    assert spoilt_all.calibration is spoilt_all.training is None


def test_a_function_that_takes_too_long_ends_with_the_time_limit(
    prepared: Prepare, tmp_path: Path
) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        "import time\n"
        "def pre(sample):\n    time.sleep(0.02)\n    return sample\n"
        "def metric(outputs, labels):\n    return 1.0\n"
    )
    with pytest.raises(InputError, match=r"time limit of 0\.05 s was up when --pre .* had made "):
        prepared(pre=f"{user}:pre", time_limit_s=0.05)
    result = prepared(metric=f"{user}:metric", time_limit_s=1e-9)
    outputs = {"logits": [np.zeros(10)] * 80}
    with pytest.raises(TimeIsUp, match="was up while --metric"):
        result.metric.score(outputs, result.labels, outputs)


def test_labels_belong_to_the_evaluated_samples(prepared: Prepare, digits: Digits) -> None:
    result = prepared()
    label_of = dict(
        zip((image[None].tobytes() for image in digits.image), digits.labels, strict=True)
    )
    assert result.labels is not None
    for array, label in zip(result.evaluation.inputs["image"], result.labels, strict=True):
        assert label_of[array.tobytes()] == label


def test_shares_follow_the_seed(prepared: Prepare) -> None:
    first, again, other = (prepared(seed=seed).evaluation.digest for seed in (0, 0, 1))
    assert first == again != other


def test_calibration_of_its_own_leaves_all_data_to_judge(
    prepared: Prepare, digits: Digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "cal.npz", image=digits.image[200:230])
    result = prepared(calibration=str(tmp_path / "cal.npz"))
    assert result.calibration is not None
    assert (len(result.calibration), len(result.evaluation), len(result.latency)) == (30, 100, 100)
    assert result.data.calibration_origin == "cal.npz"
    assert not images(result.calibration) & images(result.latency)


def test_what_is_judged_on_is_not_trained_on(
    prepared: Prepare, digits: Digits, digits_npz: Path, tmp_path: Path
) -> None:
    judged = images(prepared().evaluation)
    result = prepared(train=str(digits_npz))  # the calibrating fifth of it is not judged
    assert result.training is not None
    assert images(result.training) == images(prepared().calibration)
    note = "80 of 100 samples to train on are judged on, too: no training is done on them"
    assert note in result.notes
    np.savez(tmp_path / "new.npz", image=digits.image[200:230])
    new = prepared(train=str(tmp_path / "new.npz"))
    assert new.training is not None
    assert not images(new.training) & judged
    assert len(new.training) == 30
    assert not any("judged on" in note for note in new.notes)


def test_what_the_data_hold_twice_is_not_trained_on(
    prepared: Prepare, digits: Digits, tmp_path: Path
) -> None:
    np.savez(
        tmp_path / "twice.npz",
        image=np.tile(digits.image[:50], (2, 1, 1, 1)),
        labels=np.tile(digits.labels[:50], 2),
    )
    chains = (Chain.parse("distill{epochs=1}"),)
    result = prepared(data=str(tmp_path / "twice.npz"), chains=chains)
    assert result.training is not None
    assert not images(result.training) & images(result.evaluation)
    assert any("samples to calibrate on are judged on, too" in note for note in result.notes)


def test_too_few_samples_to_train_on_are_refused(
    prepared: Prepare, digits: Digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "few.npz", image=digits.image[200:203])
    with pytest.raises(InputError, match="a batch of 8 needs at least 8 samples, there are 3"):
        prepared(train=str(tmp_path / "few.npz"), batch=8)


def test_what_is_judged_on_may_calibrate_but_that_is_said(
    prepared: Prepare, digits: Digits, digits_npz: Path, tmp_path: Path
) -> None:
    result = prepared(calibration=str(digits_npz))
    assert result.calibration is not None
    assert len(result.calibration) == 100
    assert any(
        note.startswith("100 of 100 samples to calibrate on are judged") for note in result.notes
    )
    context = Context(
        tmp_path, result.evaluation, calibration=result.calibration, training=result.training
    )
    with pytest.raises(NotApplicable, match="too few samples to train on are not judged on"):
        _ = context.lessons


def test_calibration_that_does_not_fit_is_named(prepared: Prepare, tmp_path: Path) -> None:
    np.savez(tmp_path / "cal.npz", image=np.zeros((4, 1, 8, 9), np.float32))
    with pytest.raises(InputError, match=r"--calibration .*cal\.npz: a sample of image has shape"):
        prepared(calibration=str(tmp_path / "cal.npz"))


def test_batches_and_their_labels(prepared: Prepare) -> None:
    result = prepared(batch=8)
    assert result.evaluation.inputs["image"][0].shape == (8, 1, 8, 8)
    assert len(result.evaluation) == 10  # 80 samples
    assert result.labels is not None
    assert len(result.labels) == 80
    assert (result.data.batch, result.data.evaluation_samples) == (8, 80)


def test_samples_that_fill_no_batch_are_told_of(prepared: Prepare) -> None:
    assert "3 of 80 samples to judge on fill no batch of 7: left out" in prepared(batch=7).notes
    assert not any("fill no batch" in note for note in prepared(batch=8).notes)


def test_the_output_that_a_metric_names_is_one_of_the_models(prepared: Prepare) -> None:
    assert prepared(metric="top1:logits", floor=Floor.parse("top1=0.5")).metric.output == "logits"
    with pytest.raises(InputError, match="no output 'logit', it gives logits"):
        prepared(metric="top1:logit")


def test_a_batch_that_is_larger_than_the_data_is_refused(prepared: Prepare) -> None:
    with pytest.raises(InputError, match=r"a batch of 81 needs at least 81 samples"):
        prepared(batch=81)


def test_outputs_of_a_batch_are_split_into_samples(prepared: Prepare) -> None:
    result = prepared(batch=4)
    given = {"logits": [np.arange(40).reshape(4, 10) + i for i in range(20)]}
    rows = result.per_sample(given)["logits"]
    assert len(rows) == 80
    np.testing.assert_array_equal(rows[5], np.arange(10, 20) + 1)
    with pytest.raises(InputError, match="output mean has no batch axis"):
        result.per_sample({"mean": [np.zeros(10)] * 20})


def test_the_fixed_batch_of_a_model_is_taken(graph: GraphMaker, tmp_path: Path) -> None:
    from onnx import helper

    shape = ("float32", (4, 3))
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {"y": shape})
    np.savez(tmp_path / "d.npz", x=np.zeros((50, 3), np.float32))

    def run(batch: int | None) -> Prepared:
        request = Request(model.path, BUDGETS, data=str(tmp_path / "d.npz"), batch=batch)
        return prepare(request, detect(model.path), tmp_path, load_and_export)

    assert run(None).batch == 4
    assert run(None).evaluation.inputs["x"][0].shape == (4, 3)
    with pytest.raises(InputError, match="--batch 2 does not fit: the model's batch is fixed to 4"):
        run(2)


@pytest.mark.parametrize(
    ("floor", "metric", "name", "text"),
    [
        (None, None, "top1", "drop=0.01"),
        ("drop=2%", None, "top1", "drop=2%"),
        ("top1=0.9", None, "top1", "top1=0.9"),
        ("f1=0.8", None, "f1", "f1=0.8"),
        (None, "cosine", "cosine", "cosine=0.99"),
        ("drop=0.1", "f1", "f1", "drop=0.1"),
    ],
)
def test_metric_and_floor_complete_each_other(
    floor: str | None, metric: str | None, name: str, text: str, prepared: Prepare
) -> None:
    result = prepared(floor=Floor.parse(floor) if floor else None, metric=metric)
    assert result.metric.name == name
    assert str(result.floor) == text


@pytest.mark.parametrize(
    ("floor", "metric", "reason"),
    [
        ("top1=0.9", "f1", "is not a value of the metric f1"),
        (None, "topp1", "--metric topp1 is unknown; did you mean top1"),
        ("tpo5=0.9", None, "tpo5 is unknown; did you mean top5"),
        (None, "missing.py:score", "does not exist"),
    ],
)
def test_metrics_that_do_not_exist_or_fit_are_refused(
    floor: str | None, metric: str | None, reason: str, prepared: Prepare
) -> None:
    with pytest.raises(InputError, match=reason):
        prepared(floor=Floor.parse(floor) if floor else None, metric=metric)


def test_data_without_labels_is_compared_with_the_source(
    prepared: Prepare, digits: Digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", image=digits.image[:10])
    result = prepared(data=str(tmp_path / "d.npz"))
    assert (result.metric.name, str(result.floor)) == ("cosine", "cosine=0.99")
    with pytest.raises(InputError, match=r"metric top1 needs labels; .* holds none"):
        prepared(data=str(tmp_path / "d.npz"), metric="top1")


def test_without_data_inputs_are_made_up_and_that_is_said(prepared: Prepare) -> None:
    result = prepared(data=None)
    assert result.data.synthetic
    assert result.calibration is None
    assert result.labels is None
    assert result.metric.name == "cosine"
    assert any("no data was given" in note for note in result.notes)


def test_one_sample_judges_but_does_not_calibrate(
    prepared: Prepare, digits: Digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", image=digits.image[:1], labels=digits.labels[:1])
    result = prepared(data=str(tmp_path / "d.npz"))
    assert result.calibration is None
    assert len(result.evaluation) == len(result.latency) == 1
    assert any("one sample cannot be shared" in note for note in result.notes)


def test_a_torch_source_is_exported_for_the_samples(
    digits_net: Any, digits_file: Path, prepared: Prepare, tmp_path: Path
) -> None:
    import torch

    torch.save(digits_net.state_dict(), tmp_path / "weights.pt")
    result = prepared(model=tmp_path / "weights.pt", arch=f"{digits_file}:build")
    assert result.exported.difference.relative < 1e-5
    assert [spec.name for spec in result.exported.model.signature.inputs] == ["image"]
    stated = (TensorSpec("image", "float32", ("N", 1, 8, 8)),)
    made_up = prepared(
        model=tmp_path / "weights.pt", arch=f"{digits_file}:build", data=None, inputs=stated
    )
    assert made_up.data.synthetic
