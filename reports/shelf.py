"""Where what a report took long to make lies from one run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Protocol

_CODE = "code"


class Shelf(Protocol):
    """Files by what they depend on."""

    def files(self, parts: Mapping[str, Any]) -> dict[str, bytes] | None:
        """What was kept under ``parts``; None if nothing was."""

    def keep_files(self, parts: Mapping[str, Any], files: Mapping[str, bytes], what: str) -> None:
        """Keep files by name; ``what`` says in words what they are."""


def compiled_templates(shelf: Shelf | None) -> Any:
    """A cache of compiled templates for jinja2, which knows by itself which still fit."""
    if shelf is None:
        return None
    from jinja2 import BytecodeCache
    from jinja2.bccache import Bucket

    kept: Shelf = shelf

    class Templates(BytecodeCache):
        def load_bytecode(self, bucket: Bucket) -> None:
            found = kept.files(_parts(bucket.key))
            if found is not None:
                bucket.bytecode_from_string(found[_CODE])

        def dump_bytecode(self, bucket: Bucket) -> None:
            code = {_CODE: bucket.bytecode_to_string()}
            kept.keep_files(_parts(bucket.key), code, "template of a report")

    return Templates()


def _parts(key: str) -> dict[str, str]:
    return {"template": key, "by": version("jinja2")}
