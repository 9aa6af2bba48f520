"""What this machine's CPU computes in 8 bits, on which the accuracy of INT8 depends."""

from __future__ import annotations

from optimize.targets.local import LocalTarget

ISA = frozenset(LocalTarget().device().isa)
# Else products of bytes are summed in 16 bits, which overflow: weights get 7 bits.
SUMS_IN_32_BITS = bool(ISA & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"})
