"""The same model against itself: how far from 1 the paired ratio of medians strays.

Target: within 1% in 95% of the quiet runs. A run is quiet if less than a tenth of its blocks were
disturbed; what a machine that is never quiet gives is printed too.

    python benchmarks/aa.py [--runs 20] [--seconds 5]
"""

from __future__ import annotations

import argparse

from optimize.budgets.profile import paired_ratio
from optimize.profiling.doctor import same_twice
from optimize.targets.local import LocalTarget

QUIET = 0.1


def main() -> None:
    """Run and print each ratio, then the share within 1%."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    results = []
    for number in range(arguments.runs):
        one, two = same_twice(LocalTarget(), arguments.seconds)
        ratio, low, high = paired_ratio(one, two, 0.99)
        blocks = [*one.blocks, *two.blocks]
        noisy = sum(block.disturbance is not None for block in blocks) / len(blocks)
        results.append((ratio or 0.0, noisy))
        bounds = f"{low:.4f} - {high:.4f}" if low and high else "no bounds"
        print(f"run {number + 1:2}: ratio {ratio:.4f} ({bounds}), {noisy:.0%} of blocks disturbed")
    for name, chosen in (("quiet", [r for r, n in results if n < QUIET]),
                         ("all", [r for r, _ in results])):  # fmt: skip
        within = sum(abs(ratio - 1) <= 0.01 for ratio in chosen)
        share = within / len(chosen) if chosen else float("nan")
        print(f"{name}: {within} of {len(chosen)} runs within 1% ({share:.0%}), target 95%")


if __name__ == "__main__":
    main()
