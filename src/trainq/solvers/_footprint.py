"""How much memory a solve takes, by counts of the arrays that are there at once.

They are those that XLA's buffer assignment shows on a CPU, and the tests compare the
sums with it. Much smaller programs take a few tens of MiB more.
"""

from typing import Any

import equinox as eqx
import jax

from ._base import AbstractSolver
from ._bicgstab import BiCGStab
from ._direct import Direct, PlainAutodiff
from ._generators import AbstractGenerator, GramGenerator
from ._iteration import AbstractIteration
from ._step_generator import COLUMNS_AT_ONCE, StepGenerator, StepSystem
from ._systems import AbstractSystem, GramSystem


def solve_numbers(
    generator: AbstractGenerator,
    system: AbstractSystem,
    solver: AbstractSolver,
    n_columns: int,
) -> float:
    """About how many numbers are held while so many columns are solved for."""
    n = system.n_states
    tables = 2.0 * _size((generator, system))
    if isinstance(solver, Direct | PlainAutodiff):
        # The matrix and its factor, of which one takes the place of the other in part.
        return tables + (1.6 if isinstance(system, GramSystem) else 7) * n * n
    if isinstance(system, GramSystem):
        held = isinstance(solver, AbstractIteration) and (
            system.held(solver.memory) is not system
        )
        return tables + (n * system.overlap.shape[0] if held else 0)
    each = 12.0 if isinstance(solver, BiCGStab) else 5.0
    if isinstance(system, StepSystem):  # what is on the way in a sequence
        each += system.step.left / 12
    return tables + each * n * n_columns


def batch_numbers(system: AbstractSystem, solver: AbstractSolver) -> float:
    """About how many of them a batch of systems takes once: matrices are factorised one
    after another."""
    if isinstance(solver, Direct | PlainAutodiff) and not isinstance(
        system, GramSystem
    ):
        return 5.5 * system.n_states**2
    return 0.0


def slope_numbers(
    generator: AbstractGenerator, system: AbstractSystem, n_functions: int
) -> float:
    """About how many more the derivative of their forms takes: the solutions, slopes
    in the tables, and what a sequence of steps leaves."""
    if isinstance(generator, GramGenerator):
        return 0.0
    n = generator.n_states
    numbers = n * n_functions + 2.0 * _size((generator, system))
    if isinstance(generator, StepGenerator):
        numbers += generator.step.left * COLUMNS_AT_ONCE * n
    return numbers


def _size(tree: Any) -> int:
    """The numbers in a tree, those that are there twice counted once."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return sum(leaf.size for leaf in {id(leaf): leaf for leaf in leaves}.values())


def sum_numbers(generator: AbstractGenerator, n_columns: int) -> tuple[float, float]:
    """About how many numbers are held while so many columns are summed over a window
    by a polynomial of the generator, and how many more by the derivative."""
    if isinstance(generator, GramGenerator):
        return 0.0, 0.0
    tables = 4.0 * _size(generator)
    return tables, tables + 24 * n_columns * generator.n_states
