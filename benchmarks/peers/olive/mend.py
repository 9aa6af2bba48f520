"""Mend the installed Olive 0.13.0 where it cannot carry out a joint search; see README.md.

    OLIVE/bin/python mend.py

Each mend replaces one line of its source; a second run changes nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

MENDS = (
    (  # a custom metric has no backend
        "evaluator/metric.py",
        "        return backend if isinstance(backend, str) else backend.model_dump()\n",
        "        return backend.model_dump() if hasattr(backend, 'model_dump') else backend\n",
    ),
    (  # nor a metric_config
        "evaluator/metric.py",
        "        return metric_config.model_dump()\n",
        "        return metric_config.model_dump() if metric_config else None\n",
    ),
    (  # pydantic leaves out what a subclass adds, here all that a metric's user_config holds
        "common/config_utils.py",
        "    def to_json(self, check_object: bool = False, make_absolute: bool = True) -> dict:\n"
        "        return serialize_to_json(self, check_object, make_absolute)\n"
        "\n"
        "    @classmethod\n"
        '    def from_json(cls, json_dict: dict) -> "ConfigBase":\n',
        "    def model_dump(self, **options):\n"
        '        return super().model_dump(**{"serialize_as_any": True, **options})\n'
        "\n"
        "    def to_json(self, check_object: bool = False, make_absolute: bool = True) -> dict:\n"
        "        return serialize_to_json(self, check_object, make_absolute)\n"
        "\n"
        "    @classmethod\n"
        '    def from_json(cls, json_dict: dict) -> "ConfigBase":\n',
    ),
    (  # "model_config" is an alias of this field, and a name that pydantic keeps for itself
        "engine/footprint.py",
        "            setattr(self, k, v)\n",
        '            setattr(self, "model_config_data" if k == "model_config" else k, v)\n',
    ),
)


def main() -> None:
    """Mend each place, or end with a message if one is not as expected."""
    spec = importlib.util.find_spec("olive")
    if spec is None or spec.origin is None:
        sys.exit("Olive is not installed in this environment")
    root = Path(spec.origin).parent
    for name, old, new in MENDS:
        file = root / name
        text = file.read_text()
        if new in text:
            continue
        if text.count(old) != 1:
            sys.exit(f"{file} is not Olive 0.13.0's: {old.strip()!r} is not there once")
        file.write_text(text.replace(old, new))
        print(f"{name}: {new.strip()}")


if __name__ == "__main__":
    main()
