"""In which order a step of parallel tempering moves its replicas and swaps them.

Replicas of one model stand in a row, from the coldest to the hottest. Let `L` move each
of them at its own temperature, and `S_i` swap replicas `i` and `i + 1` with the
probability of Metropolis. Both leave the product of the tempered laws invariant, and
`S_i` is self-adjoint in it: so is a round, which picks one of several sets of pairs and
swaps all pairs in it, since disjoint swaps commute and a mixture of self-adjoint
operators is self-adjoint. The swaps of a step, `S`, are one round after another, and
self-adjoint if these read the same backwards.
"""

import abc
from typing import ClassVar, SupportsIndex

import equinox as eqx

from ..._checks import whole_number


Round = tuple[tuple[int, ...], ...]
"""Sets of pairs of replicas, one of which is picked, each as often as any other; pair
`i` is that of replicas `i` and `i + 1`."""


class AbstractSwapOrder(eqx.Module):
    """In which order a step of [`trainq.ParallelTempering`][] moves the replicas, `L`,
    and swaps neighbours, `S`: the kernel is `P = ½ (LS + SL)` or `P = LS`.

    An order of your own has `is_symmetrised` and one method, `rounds`. The sampler, the
    exact chain and whether it is reversible follow.

    !!! example

        ```python
        class EvenOrOdd(tq.markov.AbstractSwapOrder):
            is_symmetrised = True

            def rounds(self, n_replicas):
                pairs = range(n_replicas - 1)
                sets = tuple(pairs[::2]), tuple(pairs[1::2])
                return (tuple(pairs for pairs in sets if pairs),)


        betas = [1.0, 0.6, 0.3]
        kernel = tq.PalindromicBlockGibbs()
        kernel = tq.ParallelTempering(kernel, betas, EvenOrOdd())
        assert kernel.is_reversible
        ```
    """

    is_symmetrised: eqx.AbstractVar[bool]
    """Whether a coin says if the replicas move before they are swapped or after."""

    @abc.abstractmethod
    def rounds(self, n_replicas: int) -> tuple[Round, ...]:
        """The rounds of swaps in a step, in order: in each a set of disjoint pairs is
        picked out of those listed, each as often as any other. Pair `i` is that of
        replicas `i` and `i + 1`."""

    def checked_rounds(self, n_replicas: int) -> tuple[Round, ...]:
        """`rounds`, having checked that they are rounds of so many replicas.

        **Raises:** `ValueError` for a round without pairs, a pair that is not there, or
        pairs of one set that share a replica.
        """
        rounds = tuple(
            tuple(tuple(pairs) for pairs in one) for one in self.rounds(n_replicas)
        )
        every = [pairs for one in rounds for pairs in one]
        disjoint = all(
            abs(a - b) > 1 for s in every for k, a in enumerate(s) for b in s[:k]
        )
        there = all(s and all(0 <= i < n_replicas - 1 for i in s) for s in every)
        if not (rounds and all(rounds) and there and disjoint):
            raise ValueError(
                f"The rounds of a {type(self).__name__} of {n_replicas} replicas are "
                "tuples of sets of pairs, each set a tuple of whole numbers from 0 to "
                f"{n_replicas - 2} no two of which are neighbours, but {rounds} were "
                "given."
            )
        return rounds

    def is_reversible(self, n_replicas: int) -> bool:
        """Whether `P` is self-adjoint if `L` is: it is symmetrised, and the rounds read
        the same backwards.

        **Raises:** `ValueError` as `checked_rounds`.
        """
        # The order of the pairs of a set, and of the sets of a round, does not matter.
        rounds = [
            sorted(sorted(pairs) for pairs in one)
            for one in self.checked_rounds(n_replicas)
        ]
        return self.is_symmetrised and rounds == rounds[::-1]


class RandomSwaps(AbstractSwapOrder):
    """Swaps of random pairs of neighbours, before the replicas move or after, by a
    coin: `P = ½ (LS + SL)` with `S = ((1/(R-1)) Σ_i S_i)ⁿ`. Reversible, if the kernel
    of the replicas is. The default.

    `L` and `S` are self-adjoint, and so is `½ (LS + SL)`, which `LS` alone is not.
    """

    is_symmetrised: ClassVar[bool] = True
    n_swaps: int | None = eqx.field(static=True)

    def __init__(self, n_swaps: SupportsIndex | None = None):
        """**Arguments:**

        - `n_swaps`: how many pairs are tried in a step, one after another. As many as
            there are, `replicas - 1`, by default.

        **Raises:** `ValueError` if it is not a positive whole number.
        """
        self.n_swaps = None if n_swaps is None else whole_number("n_swaps", n_swaps)

    def rounds(self, n_replicas: int) -> tuple[Round, ...]:
        any_pair = tuple((i,) for i in range(n_replicas - 1))
        return (any_pair,) * (self.n_swaps or n_replicas - 1)


class EvenOddSwaps(AbstractSwapOrder):
    """The replicas move, then pairs 0, 2, 4, … are swapped, then pairs 1, 3, 5, …:
    `P = L S_even S_odd`, the deterministic even–odd scheme. It leaves the law invariant
    but is **not** reversible.

    States wander up and down the ladder faster than by random swaps, which take them
    back and forth.

    ??? cite "Source"

        Okabe, Kawata, Okamoto and Mikami, *Replica-exchange Monte Carlo method for the
        isobaric–isothermal ensemble*, Chem. Phys. Lett. 335, 435, 2001; Syed,
        Bouchard-Côté, Deligiannidis and Doucet, *Non-reversible parallel tempering*,
        J. R. Stat. Soc. B 84, 321, 2022.
    """

    is_symmetrised: ClassVar[bool] = False

    def rounds(self, n_replicas: int) -> tuple[Round, ...]:
        pairs = range(n_replicas - 1)
        return tuple((tuple(s),) for s in (pairs[::2], pairs[1::2]) if s)
