"""The exact Q of a window of 250 sweeps of single flips, by `QOperational`: of chains
that start uniformly, of those that start in the law of the model, and of eight models
at once."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from measure import claim, finish, once_compiled
from problems import data

import trainq as tq


KERNEL = tq.RandomScanGibbs()
BATCH = 8


def model(key, m):
    return tq.RBM(jr.normal(key, (m, m)) / 2)


def seconds(fn, argument, repeats=3):
    return once_compiled(eqx.filter_jit(fn), argument, repeats)[0]["seconds"]


def row(m, start):
    window = KERNEL.steps(model(jr.key(0), m), sweeps=250)
    predictor, law = tq.QOperational(KERNEL, window, start=start), data(m)

    def log_q(model):
        return jnp.log(predictor(model, law).q)

    one = model(jr.key(0), m)
    some = eqx.filter_vmap(lambda key: model(key, m))(jr.split(jr.key(0), BATCH))
    value = seconds(log_q, one)
    return {
        "units": 2 * m,
        "steps": window,
        "start": type(start).__name__,
        "seconds": value,
        "with gradient": seconds(eqx.filter_value_and_grad(log_q), one, repeats=1),
        f"{BATCH} models": seconds(eqx.filter_vmap(log_q), some),
    }


def main():
    starts = tq.Uniform(), tq.Stationary()
    rows = [row(m, start) for m in (4, 5, 6) for start in starts]
    rows.append(row(7, tq.Stationary()))
    uniform, stationary = rows[2]["seconds"], rows[3]["seconds"]
    what = "10 units: chains that start in the law, times as fast"
    finish(__file__, rows, [claim(what, uniform / stationary, least=20)])


if __name__ == "__main__":
    main()
