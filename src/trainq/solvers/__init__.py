"""Linear systems of Markov generators: how they are solved, and how well.

It knows no model and no chain.
"""

from ._solvers import (
    RESULTS as RESULTS,
    AbstractStrategy as AbstractStrategy,
    Auto as Auto,
    ConjugateGradient as ConjugateGradient,
    Direct as Direct,
    SolverStats as SolverStats,
)
