"""Single timings beside the report: ``samples.npz``, and how it is read back.

The file holds one row a block of calls, in the order in which they ran, for all variants:

- ``chains``: the variants' names, shape (variants,); ``calls``: how many calls each was timed for,
- ``variant``, ``process``, ``started_ns``, ``disturbance``, ``size``: of each block, shape
  (blocks,): an index into ``chains``; the variant's process, from 0; its start in
  nanoseconds since 1970; what disturbed the machine, empty if nothing did; its number of calls,
- ``samples_ns``: the latencies of all blocks one after another, int64, shape (sum of ``size``,).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.profile import Block, Profile
from optimize.errors import InputError

SAMPLES = "samples.npz"
# A call takes some three bytes in the file; whole blocks are left out beyond this many calls.
MOST_CALLS = 20_000


@dataclass(frozen=True, eq=False)
class Timings:
    """The stored calls of one variant, in the order in which they ran.

    Attributes:
        ns: end-to-end latency, int64, shape (calls,).
        at_s: when each call began, in seconds since the first call of the run, shape (calls,).
        disturbed: whether something disturbed the machine meanwhile, shape (calls,).
        block: which of the variant's blocks it belongs to, from 0, shape (calls,).
        process: which of the variant's processes made it, shape (calls,).
        total: how many calls were timed in all; more than ``ns.size`` if some were left out.
    """

    ns: NDArray[np.int64]
    at_s: NDArray[np.float64]
    disturbed: NDArray[np.bool_]
    block: NDArray[np.int64]
    process: NDArray[np.int64]
    total: int


def pack(profiles: Mapping[str, Profile], most: int = MOST_CALLS) -> bytes:
    """The bytes of ``samples.npz``.

    Args:
        profiles: what was measured, by chain; those without samples are left out.
        most: calls to store of one variant; beyond it, evenly spaced blocks are stored.
    """
    profiles = {chain: p for chain, p in profiles.items() if p.samples_ns.size}
    kept = [_thinned(profile.blocks, most) for profile in profiles.values()]
    blocks = [block for group in kept for block in group]
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        chains=np.array(list(profiles), dtype=np.str_),
        calls=np.array([p.samples_ns.size for p in profiles.values()], np.int64),
        variant=np.repeat(np.arange(len(kept)), [len(group) for group in kept]),
        process=np.array([block.process for block in blocks], np.int64),
        started_ns=np.array([block.started_ns for block in blocks], np.int64),
        disturbance=np.array([block.disturbance or "" for block in blocks], dtype=np.str_),
        size=np.array([block.samples_ns.size for block in blocks], np.int64),
        samples_ns=np.concatenate([np.empty(0, np.int64), *(b.samples_ns for b in blocks)]),
    )
    return stream.getvalue()


def _thinned(blocks: Sequence[Block], most: int) -> list[Block]:
    """Evenly spaced whole blocks: their order in time and their percentiles stay as they were."""
    calls = sum(block.samples_ns.size for block in blocks)
    keep = max(1, int(len(blocks) * most / calls)) if calls > most else len(blocks)
    places = np.linspace(0, len(blocks) - 1, keep).round().astype(int)
    return [blocks[place] for place in places]


def read(file: Path) -> dict[str, Timings]:
    """Read ``samples.npz`` back, by chain; empty if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    return unpack(file.read_bytes()) if file.is_file() else {}


def unpack(data: bytes) -> dict[str, Timings]:
    """Read the bytes of ``samples.npz``, by chain.

    Raises:
        InputError: they are damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return _timings({name: stored[name] for name in stored.files})
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile) as error:
        raise InputError(f"{SAMPLES} is damaged; it must be as a run wrote it") from error


def _timings(stored: Mapping[str, NDArray[np.generic]]) -> dict[str, Timings]:
    variant, size = stored["variant"], stored["size"].astype(np.int64)
    samples = stored["samples_ns"].astype(np.int64)
    started = stored["started_ns"].astype(np.int64)
    owner = np.repeat(variant, size)
    # Within a block, calls follow upon each other.
    before = np.concatenate([[0], np.cumsum(samples)[:-1]]) if samples.size else samples
    first = np.concatenate([[0], np.cumsum(size)[:-1]]).astype(np.int64) if size.size else size
    offset = before - np.repeat(before[first], size) if size.size else before
    begin = started.min() if started.size else 0
    at_s = (np.repeat(started - begin, size) + offset) / 1e9
    disturbed = np.repeat(stored["disturbance"] != "", size)
    process = np.repeat(stored["process"], size).astype(np.int64)
    block = np.repeat(np.arange(size.size), size)
    found = {}
    for index, (chain, calls) in enumerate(zip(stored["chains"], stored["calls"], strict=True)):
        own = owner == index
        of = block[own]
        found[str(chain)] = Timings(
            samples[own],
            at_s[own],
            disturbed[own],
            of - (of[0] if of.size else 0),
            process[own],
            int(str(calls)),
        )
    return found
