"""The sizes that the library promises, each in a process of its own: seconds of a value
with its gradient, compiling included, and the peak of the memory.

    python benchmarks/large.py          # those that take seconds
    python benchmarks/large.py --all    # and those that take minutes
"""

import sys

from measure import claim, finish, in_own_process


BLOCKS = ("RandomScanBlockGibbs", "PalindromicBlockGibbs", "AlternatingBlockGibbs")
# (kernel, units a layer, most seconds, most GiB, probes of the noise if not all of it)
SHORT = [
    *((kernel, 12, 15, 1) for kernel in BLOCKS),
    ("RandomScanGibbs", 8, 10, 1),
    ("RandomScanMetropolis", 8, 10, 1),
]
LONG = [
    *((kernel, 14, 60, 5) for kernel in BLOCKS),
    ("RandomScanBlockGibbs", 15, 600, 14),
    ("Symmetrised(AlternatingBlockGibbs())", 15, 600, 14),
    ("RandomScanGibbs", 10, 1200, 4),
    ("RandomScanMetropolis", 10, 1200, 4),
    ("RandomScanGibbs", 11, 300, 8, 16),
    ("RandomScanGibbs", 11, 1200, 12),
]


def main():
    everything = "--all" in sys.argv
    rows, claims = [], []
    for kernel, m, seconds, memory, *probes in SHORT + LONG * everything:
        options = [f"--probes={n}" for n in probes]
        row = in_own_process("one_case.py", kernel, m, m, "--once", *options)
        rows.append(row)
        name = ", ".join([kernel, f"{row['units']} units", *options])
        total = row["seconds"] + row["compile s"]
        claims.append(claim(f"{name}: seconds, at most {seconds}", total, most=seconds))
        claims.append(
            claim(f"{name}: GiB, at most {memory}", row["peak GiB"], most=memory)
        )
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
