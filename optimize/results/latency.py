"""Latencies as a report tells them: percentiles, their bounds, the parts of a call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from optimize.budgets.budget import PERCENTILES
from optimize.budgets.profile import Profile, percentile_bounds, relative_samples


@dataclass(frozen=True)
class PartReport:
    """A part of a call, in milliseconds; zero where the device has no such part."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class LatencyReport:
    """Percentiles of all timed calls, in milliseconds.

    ``bounds_ms`` holds a lower and an upper bound of every percentile, each one-sided at the run's
    confidence (``p99_lower_ms`` and ``p99_upper_ms`` repeat the p99's); None where there are too
    few samples.
    ``clean_samples`` were timed while nothing disturbed the machine. ``parts`` decompose a call
    into pre, input_transfer, compute, output_transfer, post and rest.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    p99_lower_ms: float | None
    p99_upper_ms: float | None
    samples: int
    clean_samples: int
    processes: int
    load_ms: float
    first_call_ms: float
    warmup_calls: int
    steady: bool
    peak_memory_bytes: int | None = None
    bounds_ms: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    parts: dict[str, PartReport] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, confidence: float) -> LatencyReport:
        """Summarize a profile that has samples."""
        ms = {name: profile.percentile_ns(p) / 1e6 for name, p in PERCENTILES.items()}
        bounds = {
            name: _in_ms(percentile_bounds(profile.samples_ns, p, confidence))
            for name, p in PERCENTILES.items()
        }
        return cls(
            p50_ms=ms["p50"],
            p90_ms=ms["p90"],
            p95_ms=ms["p95"],
            p99_ms=ms["p99"],
            p999_ms=ms["p99.9"],
            p99_lower_ms=bounds["p99"][0],
            p99_upper_ms=bounds["p99"][1],
            samples=profile.samples_ns.size,
            clean_samples=profile.clean_ns.size,
            processes=len({block.process for block in profile.blocks}),
            load_ms=profile.load_ns / 1e6,
            first_call_ms=profile.first_call_ns / 1e6,
            warmup_calls=profile.warmup_calls,
            steady=profile.steady,
            peak_memory_bytes=profile.peak_bytes,
            bounds_ms=bounds,
            parts=_parts(profile),
        )


def _in_ms(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    lower, upper = (None if bound is None else bound / 1e6 for bound in bounds)
    return lower, upper


def _parts(profile: Profile) -> dict[str, PartReport]:
    """Decompose calls; where nothing but compute was marked, it is all there is."""
    names = ("pre", "input_transfer", "compute", "output_transfer", "post")
    blocks = [block.parts_ns for block in profile.blocks]
    if any(blocks):
        found = {name: np.concatenate([block[name] for block in blocks]) for name in names}
    else:
        nothing = np.zeros_like(profile.samples_ns)
        found = dict.fromkeys(names, nothing) | {"compute": profile.samples_ns}
    found["rest"] = profile.samples_ns - np.sum(list(found.values()), axis=0)
    return {
        name: PartReport(*(float(v) / 1e6 for v in np.quantile(values, (0.5, 0.95, 0.99))))
        for name, values in found.items()
    }


@dataclass(frozen=True)
class RelativeReport:
    """Latencies as multiples of what a call of the source took at the same moment (its median).

    Rows that were timed at different moments can be compared by them, on a machine whose speed
    drifts, too. The bounds are one-sided, each at the run's confidence.
    """

    p50: float
    p99: float
    p99_lower: float | None
    p99_upper: float | None

    @classmethod
    def of(cls, source: Profile, profile: Profile, confidence: float) -> RelativeReport | None:
        """Compare two profiles; None if one has no samples."""
        samples = relative_samples(source, profile)
        if samples.size == 0:
            return None
        p50, p99 = np.quantile(samples, (0.5, 0.99), method="inverted_cdf")
        return cls(float(p50), float(p99), *percentile_bounds(samples, 0.99, confidence))
