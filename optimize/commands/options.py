"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="Q=LIMIT",
        help="p50|p90|p95|p99|p99.9=20ms, size=25MB or memory=500MB; repeat: all must hold.",
    ),
]
FloorText = Annotated[
    str | None,
    typer.Option(
        "--floor", help="METRIC=VALUE, drop=0.01 or drop=1%.  [default: drop=0.01; cosine=0.99]"
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Samples: .npz, a folder of .npz, or file.py:function."),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="top1, top5, f1, mae, rmse, cosine (of one output: top1:NAME), or file.py:function "
        "(higher is better).",
    ),
]
ChainTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--chain", metavar="PASS,...", help="Only these, e.g. 'fold,fuse,int8{mode=dynamic}'."
    ),
]
Strategies = Annotated[
    str | None,
    typer.Option(
        "--strategies",
        metavar="A,B",
        help="Only chains with one of these passes or modes, as static,fp16,nncf.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of the runtime.  [default: the cores granted]"),
]
Cpus = Annotated[
    str | None,
    typer.Option("--cpus", help="Cores for the model, e.g. 0,2-3.  [default: those granted]"),
]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Samples a call.  [default: the model's own, or 1]")
]
Confidence = Annotated[float, typer.Option("--confidence", help="Of a kept verdict.")]
TimeLimit = Annotated[str, typer.Option("--time-limit", help="90s, 10m or none.")]
MaxSamples = Annotated[int, typer.Option("--max-samples", help="Timed calls of one variant.")]
StrictFloor = Annotated[
    bool, typer.Option("--strict-floor", help="The interval's worse end must meet the floor.")
]
Pre = Annotated[
    str | None, typer.Option("--pre", help="file.py:function before each call; it is timed too.")
]
Post = Annotated[
    str | None, typer.Option("--post", help="file.py:function after each call; it is timed too.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SHAPE:TYPE",
        help="An input's shape, e.g. image=Nx3x224x224:float32.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="file.py:factory for weights without an architecture."),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Let a pickled model run its code.")
]
Calibration = Annotated[
    str | None,
    typer.Option("--calibration", help="Samples to calibrate on.  [default: a fifth of --data]"),
]
Train = Annotated[
    str | None,
    typer.Option("--train", help="Samples to train on.  [default: those to calibrate on]"),
]
DistillHook = Annotated[
    str | None,
    typer.Option("--distill", help="file.py:function, a training of your own, as a variant."),
]
StudentArch = Annotated[
    str | None,
    typer.Option("--student", help="file.py:factory, a smaller network to train from MODEL."),
]
PruneTo = Annotated[
    str | None,
    typer.Option("--prune", metavar="SHARE|p99", help="Remove that share, or what p99 asks for."),
]
RuntimeNames = Annotated[
    str,
    typer.Option("--runtime", help="onnxruntime, openvino, inductor, several with commas, or all."),
]
ObjectiveName = Annotated[str, typer.Option("--objective", help="latency, accuracy or size.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Folder kept between runs.  [default: ~/.cache/optimize]"),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep nothing, and use nothing kept.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Passes at once.  [default: the cores granted]")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what the cache knows.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on where the budget is below every lower bound.")
]
TuneSession = Annotated[
    bool,
    typer.Option(
        "--tune-session", help="Try threads, up to the cores, and options of the best's session."
    ),
]
Trials = Annotated[
    int, typer.Option("--trials", help="Chains to try beyond the plan; needs tailfit[search].")
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Result folder.  [default: MODEL.optimized; profile: none]"),
]
Seed = Annotated[int, typer.Option("--seed", help="For shares and order.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the answer.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print every step.")]


def refuse_empty(options: Mapping[str, Any]) -> None:
    """Refuse options with an empty text, such as a build's variable that is not set.

    No default is meant by it: a floor or a baseline would be lost without a word.

    Raises:
        InputError: one is empty.
    """
    from optimize.errors import InputError

    for name, value in options.items():
        if name in ("model", "models") and "" in (value if name == "models" else [value]):
            raise InputError("MODEL is empty; name a model")
        if name == "folder" and value == "":
            raise InputError("DIR is empty; name a result folder")
        if value == "":
            raise InputError(f"--{name.replace('_', '-')} is empty; give a value, or leave it out")
