"""A run that is killed and resumed, again and again; and the same command a second time.

Each repetition has a cache of its own: the command is killed by SIGKILL at a random moment of an
undisturbed run's time, then given again until it ends by itself. Compared with the undisturbed run:
the chosen artefact and the statuses, processes and temporary files left, and the sum of the work.
Two clearly different strategies compete, so that noise does not choose between equals. Then the
same command with nothing left to do.

Targets: the same artefact and statuses every time; no orphans, no files; at most 1.3x of the work;
the second run under 3 s and 5% of the first, and no worker started.

    python -m benchmarks.resume MODEL --data DATA ... [--times 20]

What follows ``--times`` is given to ``optimize`` as it is. ``make compiled`` first: of an installed
package the modules are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

UNDISTURBED = 3  # runs, whose median is what a killed one is held against


@dataclass(frozen=True)
class Ended:
    """A run: its wall time in seconds, its exit code (negative if killed), and its report."""

    seconds: float
    code: int
    report: dict[str, object]

    @property
    def verdict(self) -> tuple[object, ...]:
        """The chosen artefact and every status."""
        rows = self.report.get("variants", [])
        assert isinstance(rows, list)
        digests = {row["chain"]: row["digest"] for row in rows}
        chosen = self.report.get("chosen")
        return digests.get(chosen), tuple((row["chain"], row["status"]) for row in rows)


class Place:
    """A cache, a result folder and a folder for temporary files, all new."""

    def __init__(self, root: Path, words: list[str]) -> None:
        """Make the folders below ``root``."""
        self.root, self._words = root, words
        self.temporary = root / "tmp"
        self.temporary.mkdir(parents=True)

    def run(self, kill_after_s: float | None = None) -> Ended:
        """Run the command, and kill it alone, not its children, after some time."""
        out = self.root / "out"
        words = [*self._words, "--cache", str(self.root / "cache"), "--out", str(out)]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "optimize", *words, "--quiet"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        try:
            code = process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        seconds = time.monotonic() - began
        file = out / "report.json"
        report = json.loads(file.read_text()) if file.is_file() and code >= 0 else {}
        return Ended(seconds, code, report)

    def left(self) -> list[str]:
        """What lies about after the last run."""
        odd = [path.name for path in self.root.iterdir() if path.name.startswith(".")]
        return odd + [path.name for path in self.temporary.iterdir()]

    def orphans(self) -> int:
        """Processes that still hold a file below the place, a second later."""
        time.sleep(1.0)
        found = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                found += str(self.root).encode() in (process / "cmdline").read_bytes()
            except OSError:
                continue
        return found


def main() -> None:
    """Print a line for each kill, and the sums beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    options, words = parser.parse_known_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        root = Path(folder)
        place = Place(root / "whole", words)
        whole = place.run()
        again = place.run()
        # The same run takes a tenth longer or shorter each time: one of them is no measure.
        spare = [
            Place(root / f"undisturbed-{n}", words).run().seconds for n in range(UNDISTURBED - 1)
        ]
        usual = float(np.median([whole.seconds, *spare]))
        share = again.seconds / whole.seconds
        print(
            f"undisturbed: {whole.seconds:.1f} s, exit code {whole.code}; again "
            f"{', '.join(f'{s:.1f} s' for s in spare)}"
        )
        print(
            f"the same again: {again.seconds:.2f} s, {share:.1%} (targets 3 s, 5%), "
            f"same verdict: {again.verdict == whole.verdict}"
        )
        work, same = [], 0
        for number in range(options.times):
            place = Place(root / str(number), words)
            killed = place.run(rng.uniform(0, usual))
            orphans = place.orphans()
            resumed = place.run()
            work.append((killed.seconds + resumed.seconds) / usual)
            equal = resumed.verdict == whole.verdict
            same += equal and not orphans and not place.left()
            print(
                f"killed after {killed.seconds:5.1f} s, resumed in {resumed.seconds:5.1f} s, "
                f"work {work[-1]:.2f}x, same {equal}, orphans {orphans}, left {place.left()}",
                flush=True,
            )
            if not equal:
                print(f"  undisturbed {whole.verdict}\n  resumed     {resumed.verdict}")
        print(
            f"same artefact and statuses, nothing left: {same} of {options.times}; "
            f"work {np.median(work):.2f}x, at most {max(work):.2f}x (target 1.3x)"
        )


if __name__ == "__main__":
    main()
