"""One run of ours on the same job, with the time that each stage took.

    python ours.py JOB.json

The job is search.py's, with "chains" and "budget" besides. Writes FOLDER/result.json:
{"seconds", "stages": {NAME: SECONDS}, "passes": SECONDS, "profiles": SECONDS, "points",
"model"}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from optimize import optimize


class Stopwatch:
    """An observer that adds up how long each stage lasted."""

    def __init__(self) -> None:
        """Start with whatever comes before the first stage."""
        self.seconds: dict[str, float] = {}
        self._name, self._since = "start", time.monotonic()

    def stage(self, name: str, total: int) -> None:
        """Close the stage before."""
        now = time.monotonic()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name.partition(" fold")[0], now

    def step(self, done: float, text: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


def main() -> None:
    """Optimize, and write what came of it."""
    started = time.monotonic()
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, watch = Path(job["folder"]), Stopwatch()
    result = optimize(
        job["model"], job["budget"], floor=f"drop={job['drop']}", data=job["evaluation"],
        calibration=job["calibration"], metric=job["metric"] or None, chains=job["chains"],
        threads=job["threads"], no_cache=True, out=folder / "output", observer=watch,
    )  # fmt: skip
    watch.stage("end", 0)
    rows = result.report.variants
    outcome = {
        "seconds": time.monotonic() - started,
        "stages": watch.seconds,
        "passes": sum(row.build_s for row in rows),
        "profiles": sum(row.profile_s for row in rows),
        "points": [_point(row) for row in rows],
        "chosen": result.report.chosen,
        "model": str(result.model),
    }
    (folder / "result.json").write_text(json.dumps(outcome, indent=1))


def _point(row: Any) -> dict[str, Any]:
    return {
        "pass": row.chain,
        "status": row.status,
        "p99_ms": row.latency.p99_ms if row.latency else None,
        "calls": row.latency.samples if row.latency else 0,
        "accuracy": row.accuracy.value if row.accuracy else None,
        "build_s": row.build_s,
        "profile_s": row.profile_s,
    }


if __name__ == "__main__":
    main()
