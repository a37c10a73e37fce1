"""Linear systems of Markov generators: how they are solved, and how well.

It knows no model and no chain.
"""

from ._auto import Auto as Auto, checked_solver as checked_solver
from ._base import (
    RESULTS as RESULTS,
    AbstractSolver as AbstractSolver,
    SolveOptions as SolveOptions,
    SolverStats as SolverStats,
    columns_in as columns_in,
    worst as worst,
)
from ._bicgstab import BiCGStab as BiCGStab
from ._conjugate_gradient import ConjugateGradient as ConjugateGradient
from ._direct import Direct as Direct, PlainAutodiff as PlainAutodiff
from ._elimination import (
    Factors as Factors,
    eliminate as eliminate,
    log_stationary_law as log_stationary_law,
    solve_eliminated as solve_eliminated,
    solve_eliminated_transposed as solve_eliminated_transposed,
)
from ._footprint import (
    batch_numbers as batch_numbers,
    slope_numbers as slope_numbers,
    solve_numbers as solve_numbers,
    sum_numbers as sum_numbers,
)
from ._forms import (
    MAX_ELIMINATED as MAX_ELIMINATED,
    SOLUTION as SOLUTION,
    Form as Form,
    LinearSolve as LinearSolve,
    bilinear_form as bilinear_form,
    column_size as column_size,
    form_derivative as form_derivative,
    total as total,
)
from ._generators import (
    AbstractGenerator as AbstractGenerator,
    DenseGenerator as DenseGenerator,
    FlipGenerator as FlipGenerator,
    GramGenerator as GramGenerator,
    inverse_root as inverse_root,
    ratio_scaled as ratio_scaled,
    without_subtraction as without_subtraction,
)
from ._lapack import (
    cholesky as cholesky,
    cholesky_solve as cholesky_solve,
    eigenpairs as eigenpairs,
    one_by_one as one_by_one,
)
from ._overlaps import AbstractOverlap as AbstractOverlap, DenseOverlap as DenseOverlap
from ._polynomials import (
    AbstractContraction as AbstractContraction,
    Contraction as Contraction,
    Exchange as Exchange,
    SymmetrisedExchange as SymmetrisedExchange,
    polynomial_form as polynomial_form,
    window_series as window_series,
)
from ._step_generator import StepGenerator as StepGenerator
from ._steps import (
    AbstractStep as AbstractStep,
    Flips as Flips,
    LayerRedraw as LayerRedraw,
    Redraw as Redraw,
    Repeated as Repeated,
    Words as Words,
)
from ._systems import AbstractSystem as AbstractSystem, Pairing as Pairing, pair as pair
