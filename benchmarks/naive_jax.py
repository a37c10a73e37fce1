"""log Q and its gradient, single-site Gibbs, against what one writes by hand in JAX."""

from functools import partial

import jax
import jax.numpy as jnp
from measure import claim, finish, medians
from problems import model, naive_log_q, our_log_q


AT_LEAST = {4: 4, 5: 12, 6: 20}


def main():
    rows, claims = [], []
    for m, least in AT_LEAST.items():
        weights = model(m).weights
        ours = jax.jit(jax.value_and_grad(our_log_q(m)))
        naive = jax.jit(jax.value_and_grad(naive_log_q(m)))
        times = medians(
            {"ours": partial(ours, weights), "naive": partial(naive, weights)}
        )
        (value, slope), (expected, slopes) = ours(weights), naive(weights)
        error = max(
            float(abs(value - expected) / abs(expected)),
            float(jnp.max(jnp.abs(slope - slopes)) / jnp.max(jnp.abs(slopes))),
        )
        ratio = times["naive"] / times["ours"]
        rows.append(
            {
                "m": m,
                "trainq ms": 1e3 * times["ours"],
                "solve + autodiff ms": 1e3 * times["naive"],
                "ratio": ratio,
                "difference": error,
            }
        )
        claims.append(
            claim(f"m = {m}: times as fast, at least {least}", ratio, least=least)
        )
        claims.append(claim(f"m = {m}: relative difference", error, most=1e-9))
    # Eigenvalues that symmetry makes equal differ by rounding, or not at all, and the
    # derivative of eigh divides by their difference.
    weights = model(4).weights
    slopes = jax.grad(naive_log_q(4, "eigh"))(weights)
    expected = jax.grad(our_log_q(4))(weights)
    wrong = jnp.max(jnp.abs(slopes - expected)) / jnp.max(jnp.abs(expected))
    wrong = float(jnp.where(jnp.isnan(wrong), jnp.inf, wrong))
    rows.append({"m": 4, "method": "eigh + autodiff", "difference": wrong})
    text = "m = 4: relative error of the gradient of eigh, infinite for NaN"
    claims.append(claim(text, wrong, least=1e-8))
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
