"""One search of Olive's, from a model to its best variant. Runs in Olive's own environment.

    OLIVE/bin/python search.py JOB.json

The job: {"model", "evaluation", "calibration": files, "metric": "file.py:function" or "",
"threads": N, "calls": N, "drop": MOST, "folder": EMPTY}. Writes
FOLDER/result.json: {"seconds", "points": [{"pass", "p99_ms", "accuracy", ...}], "model"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def configuration(job: dict[str, Any]) -> dict[str, Any]:
    """A joint search over what ours tries: fusion, then dynamic, static and FP16."""
    session = {"session_options": {"intra_op_num_threads": job["threads"]}}
    latency = {
        "name": "latency", "type": "latency", "data_config": "evaluation",
        "user_config": {"inference_settings": {"onnx": session}},
        "sub_types": [
            {"name": "p99", "priority": 1, "metric_config": {"repeat_test_num": job["calls"]}}
        ],
    }  # fmt: skip
    accuracy = {
        "name": "accuracy", "type": "custom",
        "user_config": {"user_script": str(HERE / "user.py"), "evaluate_func": "accuracy"},
        "sub_types": [
            {"name": "value", "priority": 2, "higher_is_better": True,
             "goal": {"type": "max-degradation", "value": job["drop"]}}
        ],
    }  # fmt: skip
    return {
        "input_model": {"type": "ONNXModel", "model_path": job["model"]},
        "systems": {
            "local": {
                "type": "LocalSystem",
                "accelerators": [
                    {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                ],
            }
        },
        "data_configs": [
            _data("evaluation", job["evaluation"], None),
            _data("calibration", job["calibration"], 128),
        ],
        "evaluators": {"both": {"metrics": [latency, accuracy]}},
        "evaluator": "both",
        "passes": {
            # onnxruntime fuses the rest at load. OrtTransformersOptimization's models have no
            # opset for com.microsoft, so that no quantization after it succeeds in 0.13.0.
            "fuse": {"type": "OnnxPeepholeOptimizer"},
            "precision": _precisions(),
        },
        "search_strategy": {"execution_order": "joint", "sampler": "sequential"},
        "host": "local",
        "target": "local",
        "cache_dir": str(Path(job["folder"]) / "cache"),
        "output_dir": str(Path(job["folder"]) / "output"),
        "log_severity_level": 1,
    }


def _data(name: str, file: str, count: int | None) -> dict[str, Any]:
    return {
        "name": name, "type": "DataContainer", "user_script": str(HERE / "user.py"),
        "load_dataset_config": {"type": "samples", "file": file, "count": count},
        "dataloader_config": {"batch_size": 1},
    }  # fmt: skip


def _precisions() -> list[dict[str, Any]]:
    """Dynamic and static INT8, each with 8 and 7 bits of weights, and FP16."""
    dynamic = {
        "type": "OnnxDynamicQuantization", "per_channel": True, "precision": "int8",
        "quant_preprocess": True,
    }  # fmt: skip
    static = {
        "type": "OnnxStaticQuantization", "per_channel": True, "precision": "int8",
        "activation_type": "uint8", "quant_format": "QDQ", "calibrate_method": "MinMax",
        "quant_preprocess": True, "data_config": "calibration",
    }  # fmt: skip
    quantized = [
        {**step, "reduce_range": reduced} for step in (dynamic, static) for reduced in (False, True)
    ]
    return [*quantized, {"type": "OnnxFloatToFloat16", "keep_io_types": True}]


def points(footprint: dict[str, Any]) -> list[dict[str, Any]]:
    """Every model that was evaluated: the pass that made it, its p99, accuracy and goals."""
    return [
        {
            "pass": node["from_pass"] or "source",
            "reduce_range": (node["pass_run_config"] or {}).get("reduce_range"),
            "p99_ms": node["metrics"]["value"]["latency-p99"]["value"],
            "accuracy": node["metrics"]["value"]["accuracy-value"]["value"],
            "met": node["metrics"]["if_goals_met"],
        }
        for node in footprint.values()
        if node["metrics"]
    ]


def main() -> None:
    """Search, and write what came of it."""
    started = time.monotonic()
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update(
        EVALUATION=job["evaluation"], METRIC=job["metric"], THREADS=str(job["threads"])
    )
    from olive.workflows import run

    run(configuration(job))
    folder = Path(job["folder"])
    footprint = json.loads((folder / "output" / "footprint.json").read_text())
    result = {
        "seconds": time.monotonic() - started,
        "points": points(footprint),
        "model": str(folder / "output" / "model.onnx"),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
