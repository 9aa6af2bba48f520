"""Hugging Face folders: the architecture that config.json names, with its safetensors weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from optimize.errors import InputError, first_cause

# What encoders, classifiers and vision models take; the model's own forward decides which.
_INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "pixel_values",
    "input_values",
    "input_features",
)


def load_folder(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Load a model offline, never running code from the folder.

    Returns:
        A module whose forward takes the named inputs by position and returns a tuple of tensors,
        and the names of its inputs, the main one first.

    Raises:
        InputError: transformers is missing, or cannot load the folder.
    """
    import torch

    try:
        import transformers
    except ImportError:
        raise InputError(
            f"{path} is a Hugging Face folder, which needs transformers; install tailfit[hf]"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        (name, *_) = config.get("architectures") or ["AutoModel"]
        loader = getattr(transformers, name, None)
        if loader is None:
            raise InputError(
                f"{path} cannot be loaded: transformers {transformers.__version__} has no "
                f"architecture {name}, which its config.json names"
            )
        # Eager attention exports to the plain operators that fusions look for.
        module, told = loader.from_pretrained(
            str(path),
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be loaded: {first_cause(error)}") from error
    _refuse_random_weights(module, told["missing_keys"], path, name)
    return _plain(module.eval())


def _refuse_random_weights(module: Any, missing: Collection[str], path: Path, name: str) -> None:
    """Leave out a pooler that was not trained; what else has no weights would be random."""
    pooler = {key for key in missing if key.startswith("pooler.")}
    if pooler and hasattr(module, "pooler"):
        module.pooler = None
    lost = sorted(set(missing) - pooler)
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"{path} holds no weights for {', '.join(lost[:3])}{more}, which {name} needs; name "
            "the architecture that was saved in its config.json"
        )


def output_names(plain: Any, inputs: tuple[str, ...], args: tuple[Any, ...]) -> tuple[str, ...]:
    """Run the module of :func:`load_folder` once and return the names of its outputs."""
    import torch

    given = dict(zip(inputs, args, strict=False))
    result = plain.model(**given, return_dict=True)
    return tuple(name for name, value in result.items() if isinstance(value, torch.Tensor))


def _plain(model: Any) -> tuple[Any, tuple[str, ...]]:
    from optimize.models.plain import Plain

    parameters = inspect.signature(model.forward).parameters
    inputs = tuple(name for name in _INPUTS if name in parameters)
    if model.main_input_name in inputs:
        inputs = (model.main_input_name, *(n for n in inputs if n != model.main_input_name))

    # An exporter restores the wrapper's mode on all of its children: it must be evaluation too.
    return Plain(model, inputs).eval(), inputs
