"""What was measured before: accuracies, latencies and explanations, kept in the store.

Each is found by all that it depends on: the artefact and its options, the device, runtime and
threads, the data, the user's functions, the versions of the libraries and of the measuring code.
Latencies are kept block by block while they are timed, so that a run that is killed goes on where
it was.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimize.budgets.profile import Block, Profile
from optimize.cache.entries import key_of
from optimize.cache.store import Store
from optimize.models.usercode import fingerprint, is_reference

# What is timed reaches the store this often: a kill loses no more.
KEEP_EVERY_NS = 2_000_000_000
_CODE = (
    "worker.py",
    "profiling/measure.py",
    "judging/scoring.py",
    "budgets/*.py",
    "explain/*.py",
)


class Records:
    """Recalls what was measured, and keeps what is; without a store it knows nothing."""

    def __init__(
        self,
        store: Store | None,
        common: Mapping[str, Any],
        *,
        fresh: bool = False,
        keeps: bool = True,
    ) -> None:
        """Open the records of one device.

        Args:
            store: where they are; None for nowhere.
            common: what all of them depend on, as JSON.
            fresh: forget what earlier runs measured.
            keeps: whether anything is kept or recalled at all; if not, turns are still taken.
        """
        self._store = store
        self._common = {**common, "code": _code_digest()}
        self._fresh = fresh
        self._keeps = keeps
        self._renewed: set[str] = set()
        self._kept: dict[str, _Kept] = {}

    def recall(self, parts: Mapping[str, Any]) -> Any:
        """The value kept under ``parts``; None if there is none."""
        key = self._key(parts)
        if self._store is None or not self._keeps or self._forgotten(key):
            return None
        document = self._store.document(key)
        return None if document is None else json.loads(document)

    def keep(self, parts: Mapping[str, Any], value: Any, what: str) -> None:
        """Keep a JSON value; ``what`` is what ``optimize cache ls`` calls it."""
        if self._store is not None and self._keeps:
            key = self._key(parts)
            self._forgotten(key)  # the store never overwrites what it has
            self._store.put(key, json.dumps(value).encode(), {"what": what})
            self._store.release(key)

    def files(self, parts: Mapping[str, Any]) -> dict[str, bytes] | None:
        """The files kept under ``parts``, by name; None if there are none."""
        told = self.recall(parts)
        return None if told is None else {n: base64.b64decode(text) for n, text in told.items()}

    def keep_files(self, parts: Mapping[str, Any], files: Mapping[str, bytes], what: str) -> None:
        """Keep small files by name; see :meth:`keep`."""
        self.keep(parts, {n: base64.b64encode(text).decode() for n, text in files.items()}, what)

    def recall_profile(self, parts: Mapping[str, Any]) -> Profile:
        """All that was timed under ``parts``; without blocks if nothing was."""
        name, number, found = self._key(parts), 0, Profile(())
        while self._forgotten(self._key({**parts, "segment": number})):
            number += 1  # all segments go, or the later ones would come back behind fresh ones
        number, generation = 0, None
        while told := self.recall({**parts, "segment": number}):
            generation = told["generation"] if generation is None else generation
            if told["generation"] == generation:  # else it outlived those before it, see _Kept
                found = _joined(found, told)
            number += 1
        self._kept[name] = _Kept(len(found.blocks), number, generation)
        return found

    def keep_profile(
        self, parts: Mapping[str, Any], profile: Profile, what: str, *, last: bool = False
    ) -> None:
        """Keep the blocks that are new since the last call, if they are worth it or the last."""
        if self._store is None or not self._keeps:
            return
        kept = self._kept.setdefault(self._key(parts), _Kept())
        new = profile.blocks[kept.blocks :]
        spent = sum(int(block.samples_ns.sum()) for block in new)
        if not new or (spent < KEEP_EVERY_NS and not last):
            return
        while document := self._store.document(self._key({**parts, "segment": kept.segments})):
            kept.segments += 1  # another run has kept what it timed meanwhile
            kept.generation = kept.generation or json.loads(document)["generation"]
        kept.generation = kept.generation or secrets.token_hex(8)
        told = {**_told(profile, new), "generation": kept.generation}
        self.keep({**parts, "segment": kept.segments}, told, f"timings of {what}")
        kept.blocks, kept.segments = len(profile.blocks), kept.segments + 1

    @contextlib.contextmanager
    def alone(self, deadline: float | None) -> Iterator[None]:
        """Time while no other run on this store times or builds, or until the deadline."""
        if self._store is None:
            yield
            return
        with self._store.turns.turn(shared=False, deadline=deadline):
            yield

    @contextlib.contextmanager
    def busy(self, deadline: float | None) -> Iterator[None]:
        """Keep a core busy while no other run on this store times, or from the deadline on."""
        if self._store is None:
            yield
            return
        with self._store.turns.turn(shared=True, deadline=deadline):
            yield

    def _key(self, parts: Mapping[str, Any]) -> str:
        return key_of({**self._common, **parts})

    def _forgotten(self, key: str) -> bool:
        """Whether a value is an earlier run's and only fresh ones count; it is then dropped."""
        if not self._fresh or key in self._renewed or self._store is None:
            return False
        self._renewed.add(key)
        known = self._store.document(key) is not None
        self._store.drop(key)
        return known


@dataclass
class _Kept:
    """How many of a profile's blocks are in the store, in how many segments.

    All segments of a profile bear the first one's ``generation``. Of those that outlived it, by
    ``--fresh`` or by eviction, none counts any more.
    """

    blocks: int = 0
    segments: int = 0
    generation: str | None = None


def function_parts(reference: str | None) -> dict[str, Any] | str | None:
    """What a value depends on if it depends on a user's function, or on something by its name."""
    return fingerprint(reference) if reference and is_reference(reference) else reference


def _code_digest() -> str:
    home = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _CODE for file in home.glob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _told(profile: Profile, blocks: tuple[Block, ...]) -> dict[str, Any]:
    return {
        "load_ns": profile.load_ns,
        "first_call_ns": profile.first_call_ns,
        "warmup_calls": profile.warmup_calls,
        "steady": profile.steady,
        "peak_bytes": profile.peak_bytes,
        "kept_at": time.time(),
        "blocks": [
            {
                "samples": _packed(block.samples_ns),
                "process": block.process,
                "started_ns": block.started_ns,
                "disturbance": block.disturbance,
                "parts": {name: _packed(values) for name, values in block.parts_ns.items()},
            }
            for block in blocks
        ],
    }


def _joined(before: Profile, told: Mapping[str, Any]) -> Profile:
    blocks = tuple(
        Block(
            samples_ns=_unpacked(block["samples"]),
            process=block["process"],
            started_ns=block["started_ns"],
            disturbance=block["disturbance"],
            parts_ns={name: _unpacked(text) for name, text in block["parts"].items()},
        )
        for block in told["blocks"]
    )
    return Profile(
        (*before.blocks, *blocks),
        load_ns=told["load_ns"],
        first_call_ns=told["first_call_ns"],
        warmup_calls=told["warmup_calls"],
        steady=told["steady"],
        peak_bytes=told["peak_bytes"],
    )


def _packed(samples: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    return base64.b64encode(np.ascontiguousarray(samples).tobytes()).decode()


def _unpacked(text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.frombuffer(base64.b64decode(text), np.int64)
