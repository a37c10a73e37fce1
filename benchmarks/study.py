"""A study of exact Q over 48 models, 4 windows and 3 burn-ins: one program that takes
the numbers as arrays, against a function that is compiled for each of them."""

import contextlib
import itertools
import time
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from measure import claim, finish
from problems import data

import trainq as tq


M, MODELS = 3, 48
WINDOWS, BURN_INS = (10, 30, 100, 300), (0, 10, 50)
PAIRS = list(itertools.product(WINDOWS, BURN_INS))
KERNEL = tq.RandomScanGibbs()


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that XLA compiles meanwhile."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def q(models, law, window, burn_in):
    """Q of every model: for numbers, or for arrays that are traced."""
    predictor = tq.QOperational(KERNEL, window, burn_in)
    return eqx.filter_vmap(predictor, in_axes=(0, None))(models, law).q


@eqx.filter_jit
def one_program(models, law, windows, burn_ins):
    return jax.lax.map(lambda pair: q(models, law, *pair), (windows, burn_ins))


# Numbers that are no arrays are part of the program.
for_each_number = eqx.filter_jit(q)


def main():
    law = data(M)
    models = eqx.filter_vmap(lambda key: tq.RBM(jr.normal(key, (M, M)) / 2))(
        jr.split(jr.key(0), MODELS)
    )
    windows, burn_ins = jnp.array(PAIRS).T
    contenders = {
        "arrays": lambda: one_program(models, law, windows, burn_ins),
        "numbers": lambda: jnp.stack(
            [for_each_number(models, law, *pair) for pair in PAIRS]
        ),
    }
    found, rows = {}, []
    for name, run in contenders.items():
        with compilations() as names:
            start = time.perf_counter()
            found[name] = jax.block_until_ready(run())
            first = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(run())
        compiled = sum("one_program" in one or "(q)" in one for one in names)
        again = time.perf_counter() - start
        rows.append(
            {
                "windows and burn-ins": name,
                "compilations": compiled,
                "first s": first,
                "again s": again,
            }
        )
    ours, theirs = rows
    difference = float(jnp.max(jnp.abs(found["arrays"] / found["numbers"] - 1)))
    claims = [
        claim("compilations of the study", ours["compilations"], most=1, least=1),
        claim(
            "times as fast as compiling for each number",
            theirs["first s"] / ours["first s"],
            least=5,
        ),
        claim("largest relative difference", difference, most=1e-10),
    ]
    finish(__file__, rows, claims)


if __name__ == "__main__":
    main()
