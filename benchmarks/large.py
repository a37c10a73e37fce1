"""The sizes that the library promises, each in a process of its own: seconds of a value
with its gradient, compiling included, and the peak of the memory.

    python benchmarks/large.py          # those that take seconds
    python benchmarks/large.py --all    # and those that take minutes
"""

import sys

from measure import claim, finish, in_own_process


BLOCKS = ("RandomScanBlockGibbs", "PalindromicBlockGibbs", "AlternatingBlockGibbs")
# (kernel, units a layer, most seconds, most GiB)
SHORT = [
    *((kernel, 12, 15, 16) for kernel in BLOCKS),
    ("RandomScanGibbs", 8, 10, 12),
    ("RandomScanMetropolis", 8, 10, 12),
]
LONG = [
    *((kernel, 14, 300, 16) for kernel in BLOCKS),
    ("RandomScanGibbs", 10, 1200, 12),
    ("RandomScanMetropolis", 10, 1200, 12),
]


def main():
    everything = "--all" in sys.argv
    rows, claims = [], []
    for kernel, m, seconds, memory in SHORT + LONG * everything:
        row = in_own_process("one_case.py", kernel, m, m, "--once")
        rows.append(row)
        name = f"{kernel}, {row['units']} units"
        total = row["seconds"] + row["compile s"]
        claims.append(claim(f"{name}: seconds, at most {seconds}", total, most=seconds))
        claims.append(
            claim(f"{name}: GiB, at most {memory}", row["peak GiB"], most=memory)
        )
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
