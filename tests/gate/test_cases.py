"""Which budgets are judged on which device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from optimize.budgets.regression import Loss
from optimize.errors import InputError
from optimize.gate.cases import Case, Gate, Overrides, cases, gate, request
from optimize.gate.devices import mismatch
from optimize.gate.schema import TargetSection

if TYPE_CHECKING:
    from pathlib import Path

    from gate.conftest import Declare

    from optimize.targets.base import Device

FILE = """\
[targets.prod]
cpu = "AMD EPYC*"
cores = 2
[targets.edge]
architecture = "aarch64"

[models.both]
source = "both.onnx"
budget = { any = "size=9MB", prod = "p99=20ms", edge = ["p99=80ms", "memory=1GB"] }
[models.edge-only]
source = "edge.onnx"
budget = { edge = "p99=80ms" }
[models.free]
source = "free.onnx"
budget = "p99=5ms"
"""
NONE = Overrides()


def labels(found: list[Case]) -> dict[str, bool]:
    return {case.label: case.elsewhere is None for case in found}


def test_budgets_of_another_device_are_asked_for_and_not_judged(
    declare: Declare, epyc: Device
) -> None:
    found = cases(declare(FILE), (), (), NONE, epyc)
    assert labels(found) == {
        "both@prod": True, "both@edge": False, "edge-only@edge": False, "free": True,
    }  # fmt: skip
    by_label = {case.label: case for case in found}
    assert by_label["both@prod"].budgets == ("size=9MB", "p99=20ms")
    assert by_label["both@edge"].budgets == ("p99=80ms", "memory=1GB")
    assert by_label["both@edge"].elsewhere == "architecture is x86_64, not aarch64"
    assert by_label["free"].line == 13


def test_on_a_strange_device_only_what_holds_everywhere_is_judged(
    declare: Declare, epyc: Device
) -> None:
    device = replace(epyc, cpu="Intel Xeon")
    found = cases(declare(FILE), ("both",), (), NONE, device)
    assert labels(found) == {"both": True, "both@prod": False, "both@edge": False}
    assert found[0].budgets == ("size=9MB",)


@pytest.mark.parametrize("target", ["prod", "here"])
def test_a_target_that_is_asked_for_leaves_the_others_out(
    target: str, declare: Declare, epyc: Device
) -> None:
    found = cases(declare(FILE), (), (target,), NONE, epyc)
    assert labels(found) == {"both@prod": True, "free": True}


def test_a_target_that_is_asked_for_elsewhere_is_not_judged(declare: Declare, epyc: Device) -> None:
    found = cases(declare(FILE), ("edge-only",), ("edge",), NONE, epyc)
    assert labels(found) == {"edge-only@edge": False}


def test_that_nothing_is_asked_for_is_no_pass(declare: Declare, epyc: Device) -> None:
    with pytest.raises(InputError, match=r"nothing to judge.*not edge: architecture is x86_64"):
        cases(declare(FILE), ("edge-only",), ("here",), NONE, epyc)


def test_a_budget_on_the_command_line_is_for_this_device(declare: Declare, epyc: Device) -> None:
    overrides = Overrides({"budget": {"any": ["p99=1s"]}})
    found = cases(declare(FILE), ("both",), (), overrides, epyc)
    assert [(case.label, case.budgets) for case in found] == [("both", ("p99=1s",))]


@pytest.mark.parametrize(
    ("names", "targets", "words"),
    [
        (("bot",), (), "declares no model bot; did you mean both?"),
        ((), ("prd",), "--target prd is not declared in .*; did you mean prod?"),
    ],
)
def test_strange_names_are_refused(
    names: tuple[str, ...], targets: tuple[str, ...], words: str, declare: Declare, epyc: Device
) -> None:
    with pytest.raises(InputError, match=words):
        cases(declare(FILE), names, targets, NONE, epyc)


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"cpu": "amd epyc*"}, None),
        ({"cpu": "*Xeon*"}, "cpu is AMD EPYC 9654, not *Xeon*"),
        ({"isa": ["avx2"]}, None),
        ({"isa": ["amx_int8", "avx2"]}, "it has no amx_int8"),
        ({"cores": 96}, "2 cores are granted, not 96"),
        ({"min_memory": "16GB", "os": "linux*"}, None),
        ({"min_memory": "17GB"}, "its memory is 16 GB, less than 17GB"),
    ],
)
def test_a_device_is_a_target_if_every_condition_holds(
    conditions: dict[str, object], reason: str | None, epyc: Device
) -> None:
    assert mismatch(TargetSection.model_validate(conditions), epyc) == reason


def test_files_are_relative_to_the_declaration(declare: Declare, tmp_path: Path) -> None:
    declared = declare(
        '[models.net]\nsource = "m/net.onnx"\nbudget = "p99=1ms"\ndata = "d.npz"\n'
        'metric = "m.py:f"\narch = "/abs/a.py:build"\nout = "o"\n'
    )
    asked = request(declared, Case("net", None, 1, ("p99=1ms",)), NONE)
    assert asked.model == tmp_path / "m/net.onnx"
    assert asked.data == str(tmp_path / "d.npz")
    assert asked.metric == f"{tmp_path / 'm.py'}:f"
    assert asked.arch == "/abs/a.py:build"
    assert asked.folder == tmp_path / "o"
    bound = request(declared, Case("net", "prod", 1, ("p99=1ms",)), NONE)
    assert bound.folder == tmp_path / "o@prod"
    placed = request(declared, Case("net", "prod", 1, ("p99=1ms",)), Overrides(out=tmp_path / "x"))
    assert placed.folder == tmp_path / "x" / "net@prod"


@pytest.mark.parametrize("out", ["/", "m/.."])
def test_a_folder_without_a_name_cannot_be_that_of_a_target(declare: Declare, out: str) -> None:
    declared = declare(f'[models.net]\nsource = "a"\nbudget = "p99=1ms"\nout = "{out}"\n')
    with pytest.raises(InputError, match="models.net: out = .* has no name that @prod"):
        request(declared, Case("net", "prod", 1, ("p99=1ms",)), NONE)


def test_unless_said_a_tenth_slower_and_nothing_of_the_metric_is_allowed(
    declare: Declare, epyc: Device
) -> None:
    declared = declare(FILE)
    case, *_ = cases(declared, (), (), NONE, epyc)
    assert gate(declared, case, NONE) == Gate(0.1, Loss(0.0))
