"""Measure variants side by side: outputs for their accuracy, then latencies in turns."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.profile import Block, Profile
from optimize.budgets.verdict import HOPELESS_CALLS, Requirement, weigh
from optimize.errors import WorkerError
from optimize.models.data import Array
from optimize.targets.base import Job, Target, Worker
from optimize.targets.inputs import read_outputs
from optimize.worker import SPINNING

# Short blocks: calls of one block share the machine's mood, and the judge discounts them for it.
BLOCK_NS = 100_000_000
BLOCK_MOST = 50
# Of slow calls as many as this, or a second's, so that most of the time is not the untimed lead's.
BLOCK_LEAST, BLOCK_LONGEST_NS = 16, 1_000_000_000
# Evidence of one unbroken moment says little of the next: samples are spread over several blocks.
MIN_BLOCKS = 5
REFERENCE_EVERY = 4
# A variant that is out of the race is still timed this long, so that its row can be compared.
INFORMATIVE_CALLS = 100
INFORMATIVE_NS = 2_000_000_000
# Until the p99 has an upper bound at 99%, for which 459 calls are the fewest; or so long.
COMPARED_CALLS, COMPARED_NS = 500, 5_000_000_000
# onnxruntime's idle threads spin on for some 50 ms and would disturb whoever is timed next.
SPIN_NS = 50_000_000
# What marks a block as disturbed: fixed work that took longer than usual, tasks that waited for a
# core (the kernel's pressure-stall total), involuntary context switches.
DISTURBED_CANARY, DISTURBED_STALL, DISTURBED_SWITCHES = 1.5, 0.02, 0.02
# A variant that only disturbed blocks speak against is left undecided after this many calls.
NOISY_CALLS, NOISY_NS = 1000, 5_000_000_000


@dataclass(frozen=True)
class Limits:
    """When to stop measuring.

    Attributes:
        deadline: on ``time.monotonic``; None for no limit.
        max_samples: timed calls of one variant, unless they took less than ``min_seconds``: a
            fast model's calls are cheap, and neighbours in time say little that is new.
        min_seconds: see ``max_samples``; ten times that many calls are made at most.
        timeout_s: how long a worker may be silent beyond what its calls should take.
    """

    deadline: float | None = None
    max_samples: int = 5000
    min_seconds: float = 10.0
    timeout_s: float = 120.0

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def part(self, share: float) -> Limits:
        """The same, with a share of the time that is left."""
        if self.deadline is None:
            return self
        now = time.monotonic()
        return replace(self, deadline=now + share * (self.deadline - now))

    def exhausted(self, profile: Profile) -> bool:
        """Whether a variant has had its share of calls."""
        calls, spent = profile.samples_ns.size, float(profile.samples_ns.sum()) / 1e9
        if calls < self.max_samples:
            return False
        return spent >= self.min_seconds or calls >= 10 * self.max_samples


@dataclass
class Contender:
    """A variant while it is measured.

    Attributes:
        name: its chain.
        job: what its workers load.
        workers: its running processes.
        profile: what has been timed so far.
        judged: False if it is out of the race and timed for information only.
        reference: whether it is timed as long as any other is.
        error: why it was given up; None while it runs.
        first_process: number of the first of its workers, after those of earlier runs.
        profiled: whether its operators were profiled in a worker that still runs.
    """

    name: str
    job: Job
    workers: list[Worker] = field(default_factory=list)
    profile: Profile = field(default_factory=lambda: Profile(()))
    judged: bool = True
    reference: bool = False
    error: str | None = None
    call_ns: float = 0.0
    rss_bytes: int = 0
    first_process: int = 0
    profiled: bool = False

    @property
    def spins(self) -> bool:
        """Whether its idle threads keep their cores busy for a while after a call."""
        settings = self.job.settings
        return settings.threads > 1 and dict(settings.config).get(SPINNING) != "0"

    def close(self) -> None:
        """End its processes."""
        for worker in self.workers:
            worker.close()
        self.workers.clear()
        self.profiled = False


Progress = Callable[[Sequence[Contender]], None]
Beaten = Callable[[Contender], bool]


def open_worker(target: Target, contender: Contender, limits: Limits) -> None:
    """Start one more process for a contender.

    Raises:
        WorkerError: the model does not load or run.
    """
    scratch = contender.job.scratch / f"process-{len(contender.workers)}"
    scratch.mkdir(parents=True, exist_ok=True)
    job = replace(contender.job, scratch=scratch)
    worker, ready = target.start(job, limits.timeout_s)
    if not contender.workers:
        blocks = contender.profile.blocks
        contender.first_process = 1 + max((block.process for block in blocks), default=-1)
        contender.profile = replace(
            contender.profile, load_ns=ready["load_ns"], first_call_ns=ready["first_call_ns"]
        )
    contender.workers.append(worker)
    _note_memory(contender, ready)
    contender.call_ns = contender.call_ns or float(ready["first_call_ns"])


def _note_memory(contender: Contender, reply: dict[str, Any]) -> None:
    contender.rss_bytes = max(contender.rss_bytes, reply.get("rss_bytes") or 0)
    peak = reply.get("peak_bytes")
    # A process that has profiled its operators holds more than one that serves.
    if peak is not None and not contender.profiled:
        most = max(contender.profile.peak_bytes or 0, peak)
        contender.profile = replace(contender.profile, peak_bytes=most)


@dataclass(frozen=True)
class OutputFile:
    """One output of several samples, as a worker wrote it.

    Attributes:
        entry: what the worker told of it.
        path: the file.
    """

    entry: Mapping[str, Any]
    path: Path

    def read(self) -> list[Array]:
        """Map it: an array for each sample; the file is open for as long as one of them lives."""
        return read_outputs(dict(self.entry), self.path)


def run_outputs(
    contender: Contender, order: Sequence[int], limits: Limits, part: int = 0
) -> dict[str, OutputFile]:
    """Run the inputs with these numbers, and leave every output where the worker wrote it.

    ``part`` tells the files of several calls apart.

    Raises:
        WorkerError: the worker failed, or an output holds NaN.
    """
    timeout = limits.timeout_s + 20 * len(order) * contender.call_ns / 1e9
    worker = contender.workers[0]
    reply = worker.call("outputs", timeout, order=list(order), part=part)
    for entry in reply["outputs"]:
        if entry["nans"]:
            raise WorkerError(f"its output {entry['name']} holds {entry['nans']} NaN values")
    _note_memory(contender, reply)
    return {e["name"]: OutputFile(e, worker.fetch(e["file"])) for e in reply["outputs"]}


def collect_outputs(contender: Contender, count: int, limits: Limits) -> dict[str, list[Array]]:
    """Run the first ``count`` inputs and return every output of each; see :func:`run_outputs`."""
    files = run_outputs(contender, range(count), limits)
    return {name: file.read() for name, file in files.items()}


def warm_up(contender: Contender, limits: Limits) -> None:
    """Warm up all processes of a contender until they are steady.

    Raises:
        WorkerError: a worker failed.
    """
    timeout = limits.timeout_s + 300 * contender.call_ns / 1e9
    for worker in contender.workers:
        reply = worker.call("warmup", timeout, calls=10, most=300, seconds=0.3)
        contender.call_ns = float(reply["p50_ns"])
        contender.profile = replace(
            contender.profile,
            warmup_calls=contender.profile.warmup_calls + reply["calls"],
            steady=contender.profile.steady and reply["steady"],
        )


def operators(contender: Contender, limits: Limits) -> list[dict[str, Any]]:
    """Ask a contender's worker for its slowest operators, over some twenty calls or a second.

    Raises:
        WorkerError: the worker failed.
    """
    calls = int(min(max(2, 1e9 / max(contender.call_ns, 1)), 20))
    contender.profiled = True
    rows: list[dict[str, Any]] = contender.workers[0].call(
        "operators", limits.timeout_s + 40 * calls * contender.call_ns / 1e9, calls=calls
    )["operators"]
    return rows


def time_in_turns(
    contenders: Sequence[Contender],
    requirement: Requirement,
    sample_count: int,
    limits: Limits,
    rng: np.random.Generator,
    progress: Progress,
    beaten: Beaten = lambda _: False,
    waits: Beaten = lambda _: False,
) -> None:
    """Time all contenders block by block in random order until each is decided or beaten.

    Those that wait sit out for as long as another is timed that does not; the reference, of which
    the others' blocks need one near them in time, takes every fourth turn then.
    One runs at a time. A worker that fails ends its own contender only, which keeps its reason.
    """
    canaries: list[int] = []
    lead = lead_ns(contenders)
    active = [c for c in contenders if c.error is None]
    turn = 0
    while active and not limits.expired:
        others = [c for c in active if not c.reference]
        playing = [c for c in active if c.reference or not waits(c)]
        if all(c.reference for c in playing):
            playing = [*playing, *others]
        for index in rng.permutation(len(playing)):
            if limits.expired:
                break
            if not _sits_out(playing[index], requirement, turn, lambda c: waits(c) or beaten(c)):
                time_block(playing[index], sample_count, limits, rng, canaries, lead)
        turn += 1
        progress(contenders)
        active = [c for c in active if _stays(c, requirement, limits)]
        active = _still_open(active, requirement, limits, beaten)


def _stays(contender: Contender, requirement: Requirement, limits: Limits) -> bool:
    """Whether it is timed on; a reference is for as long as there are others to compare with it."""
    if contender.reference:
        return contender.error is None
    return not settled(contender, requirement, limits)


def _still_open(
    active: Sequence[Contender], requirement: Requirement, limits: Limits, beaten: Beaten
) -> list[Contender]:
    """Who is not beaten; the reference stays for as long as another does."""
    others = [c for c in active if not c.reference and not beaten(c)]
    references = [c for c in active if c.reference]
    alone = (c for c in references if not limits.exhausted(c.profile))
    if others or any(undecided(c, requirement) and not beaten(c) for c in alone):
        return [*references, *others]
    return []


def lead_ns(contenders: Sequence[Contender]) -> int:
    """How long a block waits before it begins, for threads of whoever ran last that spin on.

    Also one that has but one thread itself waits for the others'.
    """
    return SPIN_NS if any(contender.spins for contender in contenders) else 0


def _sits_out(contender: Contender, requirement: Requirement, turn: int, idle: Beaten) -> bool:
    """A reference that is settled or idle keeps others company now and then."""
    if not contender.reference or turn % REFERENCE_EVERY == 0:
        return False
    return idle(contender) or not undecided(contender, requirement)


def time_block(
    contender: Contender,
    sample_count: int,
    limits: Limits,
    rng: np.random.Generator,
    canaries: list[int],
    lead: int,
) -> None:
    """Time one block of a contender, see :func:`block_calls`, on samples drawn by ``rng``.

    A worker that fails ends its contender, which keeps the reason. ``canaries`` gathers what fixed
    work took in all blocks; ``lead`` is that of :func:`lead_ns`, in nanoseconds.
    """
    if contender.error is not None:
        return
    calls = block_calls(contender.call_ns)
    blocks = contender.profile.blocks
    number = len(blocks) % len(contender.workers)
    timeout = limits.timeout_s + 20 * (calls + 2) * contender.call_ns / 1e9
    started = time.time_ns()  # a clock that later runs share
    try:
        order = rng.integers(0, sample_count, calls).tolist()
        reply = contender.workers[number].call("time", timeout, order=order, lead_ns=lead)
    except WorkerError as error:
        contender.error = str(error)
        return
    if reply.get("nans"):
        contender.error = f"its output {reply['nans'][0]} holds NaN values in a timed call"
        return
    canaries.extend(reply["canary_ns"])
    block = Block(
        samples_ns=_decoded(reply["samples"]),
        process=contender.first_process + number,
        started_ns=started,
        disturbance=_disturbance(reply, calls, float(np.median(canaries))),
        parts_ns={name: _decoded(text) for name, text in reply.get("parts", {}).items()},
    )
    contender.profile = replace(contender.profile, blocks=(*blocks, block))
    _note_memory(contender, reply)


def block_calls(call_ns: float) -> int:
    """How many calls make a block: a tenth of a second's, but at least 16 or a second's."""
    call_ns = max(call_ns, 1)
    slow = min(BLOCK_LEAST, BLOCK_LONGEST_NS / call_ns)
    return int(min(max(1, slow, BLOCK_NS / call_ns), BLOCK_MOST))


def _decoded(text: str) -> NDArray[np.int64]:
    return np.frombuffer(base64.b64decode(text), np.int64)


def _disturbance(reply: dict[str, Any], calls: int, usual_ns: float) -> str | None:
    """What disturbed a block, in words; None if nothing that was watched did."""
    slowest = max(reply["canary_ns"])
    if slowest > DISTURBED_CANARY * usual_ns:
        return f"fixed work took {slowest / usual_ns:.1f} times as long as usual"
    counters: dict[str, int] = reply["counters"]
    if counters.get("throttled"):
        return "the cgroup's quota throttled it"
    if counters.get("steal_ticks", 0) > 1:
        return "the host took the processor away"
    stalled = counters.get("cpu_stall_us", 0) * 1000 / reply["elapsed_ns"]
    if stalled > DISTURBED_STALL:
        return f"processes waited for a core {stalled:.0%} of the time"
    switches = counters.get("involuntary_switches", 0)
    if switches > max(1, DISTURBED_SWITCHES * calls):
        return f"it was interrupted {switches} times in {calls} calls"
    return None


def settled(contender: Contender, requirement: Requirement, limits: Limits) -> bool:
    """Whether a contender needs no more calls, or has had all that it may have."""
    profile = contender.profile
    if contender.error is not None or limits.exhausted(profile):
        return True
    return not contender.reference and not undecided(contender, requirement)


def undecided(contender: Contender, requirement: Requirement) -> bool:
    """Whether more samples could still change what is known about a contender."""
    profile = contender.profile
    enough = (
        profile.samples_ns.size >= INFORMATIVE_CALLS
        or int(profile.samples_ns.sum()) >= INFORMATIVE_NS
    )
    if not enough or not contender.judged:
        return not enough
    evidence, samples = weigh(profile, requirement), profile.samples_ns
    if any(item.decision == "reject" for item in evidence):
        return False
    if not evidence:  # no budget on latency: until the p99 has its bounds
        return samples.size < COMPARED_CALLS and int(samples.sum()) < COMPARED_NS
    given_up = samples.size >= NOISY_CALLS or (
        samples.size >= HOPELESS_CALLS and int(samples.sum()) >= NOISY_NS
    )
    if given_up and any(item.noisy for item in evidence):
        return False
    spread = len(profile.blocks) >= max(MIN_BLOCKS, 2 * len(contender.workers))
    return not spread or any(item.decision == "undecided" for item in evidence)
