"""JUnit XML, as GitLab, Jenkins and others read it: a suite a model, a test case a promise."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from optimize.gate.check import Checked
from optimize.gate.outcome import Finding, Outcome, State

# What XML 1.0 cannot hold.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Undecided is no pass, and readers know no third outcome: it counts as a failure.
_ELEMENTS: dict[State, str] = {"failed": "failure", "undecided": "failure", "error": "error"}


def junit(checked: Checked) -> bytes:
    """The outcomes as an XML document."""
    root = ElementTree.Element("testsuites", name="optimize check")
    for outcome in checked.outcomes:
        root.append(_suite(outcome))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    root.set("time", f"{sum(outcome.seconds for outcome in checked.outcomes):.3f}")
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _suite(outcome: Outcome) -> ElementTree.Element:
    kinds = [_ELEMENTS.get(finding.state) for finding in outcome.findings]
    suite = ElementTree.Element(
        "testsuite",
        name=_text(outcome.case.label),
        tests=str(len(kinds)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped="0",
        time=f"{outcome.seconds:.3f}",
    )
    for number, finding in enumerate(outcome.findings):
        # The run's time belongs to its first case, so that they add up.
        suite.append(_case(outcome, finding, outcome.seconds if number == 0 else 0.0))
    return suite


def _case(outcome: Outcome, finding: Finding, seconds: float) -> ElementTree.Element:
    label = _text(outcome.case.label)
    case = ElementTree.Element(
        "testcase", classname=label, name=_text(finding.name), time=f"{seconds:.3f}"
    )
    kind = _ELEMENTS.get(finding.state)
    detail = _text(finding.detail)
    if kind is None:
        ElementTree.SubElement(case, "system-out").text = detail
        return case
    ElementTree.SubElement(case, kind, type=finding.state, message=detail).text = detail
    return case


def _text(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
