"""Why a variant is not faster, or what limits it: sentences with figures, from evidence only.

Every cause that may hold is a function which looks for its own evidence. A cause is weighed by the
time that a call would save without it: casts and slower kernels count in full, float kernels by
half, since integer kernels are about twice as fast where they work well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from optimize.explain.costs import (
    CONVERSIONS,
    CONVOLUTIONS,
    MATRICES,
    PACKED,
    PAIRS,
    Part,
    Side,
    duration,
    family,
    joined,
    named,
    total,
)
from optimize.explain.evidence import FLOAT_PRODUCTS, INTEGER_PRODUCTS, Evidence

FASTER = 1.1  # from this ratio of medians on, a variant counts as faster than its source
MOST, MOST_IF_FASTER = 4, 2
MATERIAL, MATERIAL_IF_FASTER = 0.05, 0.1  # share of a call below which a cause is not told
HOPED = 2.0  # what 8 bits gain over float32 where their kernels work well
SHORT_NS = 10_000  # nodes shorter than this gain nothing from more threads
TINY = 0.3  # share of the runtime itself from which on a model is called tiny
SPARSE = 0.2
MEMORY_BYTES_PER_NS = 5.0  # GB/s; one core of any server or desktop reads more than that
# Float products for which onnxruntime has an integer kernel that quantize/dequantize pairs fuse to.
_WITH_INTEGER_KERNEL = frozenset("Conv FusedConv MatMul FusedMatMul Gemm FusedGemm".split())
_DOT_PRODUCT = frozenset("avx512_vnni avx_vnni amx_int8 asimddp i8mm sve".split())
_HALF = frozenset("avx512_fp16 asimdhp sve".split())
_DYNAMIC = ("DynamicQuantizeLinear", "Cast", "Mul", "Add", "Reshape")
_LAYOUT = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class _Cause:
    """``weight``: nanoseconds a call that its absence would save, by rough estimate."""

    weight: float
    text: str


@dataclass(frozen=True)
class _Case:
    variant: Side
    source: Side
    isa: frozenset[str]

    @property
    def call_ns(self) -> float:
        return self.variant.evidence.p50_ns

    @property
    def speed(self) -> float:
        return self.source.evidence.p50_ns / self.call_ns

    def share(self, ns: float) -> str:
        return f"{ns / self.call_ns:.0%} of a call"


def why_not_faster(variant: Evidence, source: Evidence, isa: Iterable[str] = ()) -> tuple[str, ...]:
    """What keeps a variant from being faster than it is, the most important first.

    Args:
        variant: what was seen of it.
        source: the same of its source, on the same device with the same settings.
        isa: the device's instruction sets; empty if unknown.

    Returns:
        Four sentences at most, two if the variant is faster than its source; none if nothing that
        was seen explains it.
    """
    case = _Case(Side(variant), Side(source), frozenset(isa))
    if case.call_ns <= 0 or not variant.kernels:
        return ()
    faster = case.speed >= FASTER
    least = (MATERIAL_IF_FASTER if faster else MATERIAL) * case.call_ns
    finders = _ONNXRUNTIME if variant.runtime == "onnxruntime" else _ANY_RUNTIME
    causes = [cause for find in finders for cause in find(case) if cause.weight >= least]
    causes.sort(key=lambda cause: -cause.weight)
    return tuple(cause.text for cause in causes[: MOST_IF_FASTER if faster else MOST])


def _already_quantized(case: _Case) -> Iterator[_Cause]:
    if not case.source.quantized:
        return
    graph = case.source.evidence.graph
    integer = total(case.source.integer) + case.source.of([PACKED])
    pairs = graph.count("QuantizeLinear", "DynamicQuantizeLinear")
    yield _Cause(
        2 * case.call_ns,
        f"The source is already quantized ({pairs} quantized activations in its graph, "
        f"{integer.nodes} products in integers, {integer.ns / case.source.evidence.p50_ns:.0%} of "
        "its time), so that it is not quantized again",
    )


def _half_precision(case: _Case) -> Iterator[_Cause]:
    """Half-precision weights whose arithmetic the runtime does in single precision."""
    if not case.variant.half or case.source.half:
        return
    session, products = case.variant.evidence.session, total(case.variant.float_products)
    casts = case.variant.of(["Cast"])
    cost = f"; {casts.nodes} Cast take {case.share(casts.ns)}" if casts.nodes else ""
    what = f"{named(case.variant.float_products)}, {case.share(products.ns)}"
    lacks = bool(case.isa) and not case.isa & _HALF
    weight = products.ns + casts.ns + 0.1 * case.call_ns
    if session is None:
        if lacks:
            yield _Cause(
                weight, f"float16 is emulated: this CPU has no float16 arithmetic ({what}){cost}"
            )
        return
    single = sum(n for (_, dtype), n in session.products if dtype == "float32")
    count = sum(n for _, n in session.products)
    if single > count / 2:
        cpu = " this CPU has no float16 arithmetic, and" if lacks else ""
        yield _Cause(
            weight,
            f"float16 is only stored, not computed:{cpu} onnxruntime runs {single} of {count} "
            f"products in float32 ({what}){cost}",
        )


def _conversions(case: _Case) -> Iterator[_Cause]:
    """Casts, quantization and dequantization that the source does not have."""
    if "DynamicQuantizeLinear" in case.variant.parts:
        yield from _dynamic_ranges(case)
        return
    added = {op: _grown(case, op) for op in CONVERSIONS if _grown(case, op).nodes}
    if not added:
        return
    session = case.variant.evidence.session
    islands = sorted(session.dequantized if session else (), key=lambda item: -item[1])[:3]
    around = joined([f"{count} {op}" for op, count in islands])
    where = f" around what stays in float ({around})" if around else ""
    ns = total(added).ns
    yield _Cause(ns, f"{named(added)} were added{where} and take {case.share(ns)}")


def _dynamic_ranges(case: _Case) -> Iterator[_Cause]:
    """Dynamic quantization finds each range at run time and rescales in nodes of its own."""
    added = {op: _grown(case, op) for op in _DYNAMIC if _grown(case, op).nodes}
    ns = total(added).ns
    yield _Cause(
        ns,
        f"Dynamic quantization finds its ranges in every call: {named(added)} were added for it; "
        f"all of its own nodes take {case.share(ns)}",
    )


def _grown(case: _Case, op: str) -> Part:
    """The variant's nodes beyond the source's, at the variant's average."""
    part = case.variant.parts.get(op, Part())
    return part.some(part.nodes - case.source.parts.get(op, Part()).nodes)


def _unfused_pairs(case: _Case) -> Iterator[_Cause]:
    """Float products that still run between quantize/dequantize pairs."""
    left = case.variant.between_pairs
    if not left:
        return
    ns, pairs = total(left).ns, case.variant.of(PAIRS)
    text = (
        f"{named(left)} run in float32 between quantize/dequantize pairs that did not fuse "
        f"({case.share(ns)}, and {pairs.ns / case.call_ns:.0%} for {pairs.nodes} nodes of pairs)"
    )
    yield _Cause(ns + pairs.ns, text + _why_unfused(case.variant, left))


def _why_unfused(side: Side, left: Iterable[str]) -> str:
    without = [op for op in left if op not in _WITH_INTEGER_KERNEL]
    if without:
        return f": onnxruntime has no integer kernel for {joined(without)}"
    session, graph = side.evidence.session, side.evidence.graph
    merged = session.count("Gemm", "FusedGemm") if session else 0
    if merged > graph.count("Gemm", "FusedGemm"):
        return ": MatMul and Add were merged to Gemm before it; disable MatMulAddFusion"
    return ""


def _slower_products(case: _Case) -> Iterator[_Cause]:
    """Integer or packed products that take longer than the source's float ones."""
    quantized = case.variant.integer | case.variant.only([PACKED])
    for name, part in case.variant.families.items():
        own = {op: p for op, p in quantized.items() if family(op) == name}
        before = case.source.families.get(name, Part())
        if not own or not before.ns or case.source.quantized:
            continue
        if total(own).ns < part.ns / 2 or part.ns < 0.9 * before.ns:
            continue
        ops = own | {op: p for op, p in case.variant.parts.items() if family(op) == name}
        yield _Cause(
            part.ns - before.ns / HOPED,
            f"{named(ops)} take {duration(part.ns)}, the source's {name} {duration(before.ns)}"
            + _why_slow(case, max(own, key=lambda op: own[op].ns)),
        )


def _why_slow(case: _Case, op: str) -> str:
    evidence = case.variant.evidence
    signed = dict(evidence.session.signed).get(op, 0) if evidence.session else 0
    if op == "ConvInteger":
        return (
            ": convolutions whose ranges are found in the call have no fast kernel; those of "
            "static quantization have"
        )
    if op == PACKED:
        return _why_packed_slow(case.source.evidence)
    if signed:
        return f": {signed} take signed activations; the fast kernels take unsigned ones"
    if op == "QLinearConv" and evidence.graph.grouped:
        return (
            f"; {evidence.graph.grouped} of them are depthwise or grouped, where 8 bits gain least"
        )
    return ""


def _why_packed_slow(source: Evidence) -> str:
    """Whether reading weights can have been what the source's time went into."""
    weights = sum(size for _, size in source.graph.weight_bytes)
    rate = weights / source.p50_ns
    if rate >= MEMORY_BYTES_PER_NS:
        return ""
    return (
        f": weights are unpacked in each call, and the source reads its {weights / 1e6:.3g} MB at "
        f"{rate:.2g} GB/s at most, so that arithmetic limits it, not memory"
    )


def _slower_others(case: _Case) -> Iterator[_Cause]:
    """Operators in 8 bits, other than products, that take longer than in float."""
    slower: list[tuple[float, str]] = []
    for op, part in case.variant.in_bytes.items():
        before = case.source.families.get(family(op), Part())
        lost = part.ns - before.ns
        same_work = before.nodes and part.nodes <= 1.2 * before.nodes
        if same_work and part.ns > 1.5 * before.ns and lost >= 0.02 * case.call_ns:
            times = f"{duration(part.ns)} instead of {duration(before.ns)} in float32"
            slower.append((lost, f"{part.nodes} {op} {times}"))
    if slower:
        slower.sort(reverse=True)
        shown = joined([text for _, text in slower[:3]])
        yield _Cause(sum(lost for lost, _ in slower), f"8 bits are slower here: {shown}")


def _float_remainder(case: _Case) -> Iterator[_Cause]:
    """Amdahl's law: what stays in float bounds the speed-up."""
    side = case.variant
    if not side.quantized:
        return
    eight_bits = {*side.integer, *side.in_bytes, PACKED, *CONVERSIONS, *_LAYOUT}
    left = {op: _own(case, op) for op in side.parts if op not in eight_bits}
    ns = total(left).ns
    large = {op: part for op, part in left.items() if part.ns >= 0.03 * case.call_ns}
    if not large:
        return
    others = "" if len(large) == len(left) else "with all other float operators "
    bound = case.source.evidence.p50_ns / ns
    yield _Cause(
        ns / HOPED,
        f"{named(large)} stay in float; {others}they take {case.share(ns)}, so that "
        f"quantizing the rest ends at {bound:.2g}x the source's speed{_hidden(side, large)}",
    )


def _own(case: _Case, op: str) -> Part:
    """Float nodes that neither quantization added nor stand between pairs of its own."""
    part = case.variant.parts[op]
    if "DynamicQuantizeLinear" in case.variant.parts and op in _DYNAMIC:
        part = part.some(case.source.parts.get(op, Part()).nodes)
    return part.some(part.nodes - case.variant.between_pairs.get(op, Part()).nodes)


def _hidden(side: Side, ops: Iterable[str]) -> str:
    for (product, node), count in side.evidence.graph.hidden_weights:
        if product in ops:
            return (
                f"; {count} {product} take their weights from {node} nodes, where a quantizer does "
                "not see that they are constant"
            )
    return ""


def _same_products(case: _Case) -> Iterator[_Cause]:
    """Passes that leave the arithmetic as it was can only gain on the rest."""
    products, before = total(case.variant.float_products), total(case.source.float_products)
    changed = case.variant.quantized or case.variant.half
    if changed or not before.ns or products.ns < 0.8 * before.ns:
        return
    rest = {op: part for op, part in case.variant.parts.items() if op not in FLOAT_PRODUCTS}
    other = max(0.0, case.call_ns - products.ns)
    shown = f" ({named(rest)} above all)" if rest and other > 0.3 * case.call_ns else ""
    text = (
        f"{named(case.variant.float_products)} run in float32 as in the source and take "
        f"{case.share(products.ns)}; fusion can only gain on the other "
        f"{other / case.call_ns:.0%}{shown}"
    )
    yield _Cause(products.ns / HOPED, text)


def _eight_bits_already(case: _Case) -> Iterator[_Cause]:
    """What a variant that works well spends its time on; the last that there is to say."""
    integer = total(case.variant.integer)
    if case.speed >= FASTER and integer.ns >= 0.5 * case.call_ns:
        yield _Cause(
            MATERIAL_IF_FASTER * case.call_ns,
            f"{named(case.variant.integer)} run in 8 bits already and take "
            f"{case.share(integer.ns)}; only fewer operations would shorten them",
        )


def _no_dot_product(case: _Case) -> Iterator[_Cause]:
    part = total(case.variant.integer)
    if part.nodes and case.isa and not case.isa & _DOT_PRODUCT:
        yield _Cause(
            part.ns / HOPED,
            f"This CPU has no 8-bit dot product (VNNI, AMX, or ARM's): {part.nodes} products in "
            f"integers ({case.share(part.ns)}) take several instructions where one would do",
        )


def _runtime_itself(case: _Case) -> Iterator[_Cause]:
    """A model so small that the runtime's own cost of calls and nodes dominates."""
    side, overhead = case.variant, case.variant.evidence.overhead
    if overhead is not None and side.own_ns is not None:
        own = min(side.own_ns, case.call_ns)
        detail = (
            f"{duration(overhead.call_ns)} for the call and {duration(overhead.node_ns)} for each "
            f"of {side.nodes} nodes"
        )
    else:
        own = case.call_ns - sum(row.ns for row in side.evidence.kernels)
        detail = f"outside of the kernels of {side.nodes} nodes"
    if own >= TINY * case.call_ns:
        yield _Cause(
            own,
            f"The model is tiny: of {duration(case.call_ns)} a call, the runtime itself takes "
            f"{duration(own)} ({detail}), which no faster kernel shortens",
        )


def _threads(case: _Case) -> Iterator[_Cause]:
    threads, mean_ns = case.variant.evidence.threads, case.call_ns / max(case.variant.nodes, 1)
    if threads > 1 and mean_ns < SHORT_NS:
        yield _Cause(
            0.2 * case.call_ns,
            f"{threads} threads share nodes of {duration(mean_ns)} on average, about as long as "
            "it takes to wake a thread; try one thread",
        )


def _sparsity(case: _Case) -> Iterator[_Cause]:
    zeros = case.variant.evidence.graph.zeros
    if zeros is None or zeros < SPARSE:
        return
    products = case.variant.of([*FLOAT_PRODUCTS, *INTEGER_PRODUCTS, PACKED])
    yield _Cause(
        max(zeros * products.ns, MATERIAL_IF_FASTER * case.call_ns),
        f"{zeros:.0%} of the weights are zeros, but the kernels are dense and multiply them all; "
        "only removed channels save time",
    )


def _unfused_patterns(case: _Case) -> Iterator[_Cause]:
    """Patterns left in pieces; the first to say where fusion was the variant's only hope."""
    side = case.variant
    session = side.evidence.session
    only = not side.quantized and not side.half and case.speed < FASTER
    for pattern in session.unfused if session else ():
        glue = [op for op in dict.fromkeys(pattern.nodes) if family(op) not in _PRODUCTS]
        ns = sum(side.parts.get(op, Part()).some(pattern.count).ns for op in glue)
        why = f": {pattern.why}" if pattern.why else ""
        text = (
            f"No fusion matched {pattern.count} {pattern.pattern} "
            f"({' → '.join(pattern.nodes)}; {case.share(ns)} without the products){why}"
        )
        yield _Cause(1.5 * case.call_ns if only and why else ns / HOPED, text)


_PRODUCTS = (CONVOLUTIONS, MATRICES)
_Finder = Callable[[_Case], Iterator[_Cause]]
_ANY_RUNTIME: tuple[_Finder, ...] = (_threads, _sparsity)
_ONNXRUNTIME: tuple[_Finder, ...] = (
    _already_quantized,
    _half_precision,
    _conversions,
    _unfused_pairs,
    _slower_products,
    _slower_others,
    _float_remainder,
    _same_products,
    _eight_bits_already,
    _no_dot_product,
    _runtime_itself,
    _threads,
    _sparsity,
    _unfused_patterns,
)
