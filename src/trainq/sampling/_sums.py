"""Long sums that do not lose small terms."""

from jaxtyping import Array, Float


def add_up(
    total: Float[Array, "*shape"], rest: Float[Array, "*shape"], term: Array
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """A sum with one more term, and what rounding has taken from it.

    A plain sum of `n` terms is wrong by up to `n` roundings, and stands still once a
    term is below half of the last digit of the total. Here what a rounding takes away
    comes with the next term, and two roundings are the error of the sum, for any `n` up
    to the inverse of one.

    ??? cite "Source"

        Kahan, *Further remarks on reducing truncation errors*, Commun. ACM 8, 40, 1965.
    """
    term = term + rest
    new = total + term
    return new, term - (new - total)
