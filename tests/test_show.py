"""Objects show their numbers at a prompt, and their shapes where they have none."""

import functools
import html.parser
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import KERNELS, random_law, rbm

import trainq as tq
from trainq import markov, sampling
from trainq._show import aligned, count, number


MODEL, DATA, KERNEL = rbm(2, 2), random_law(2), KERNELS["gibbs"]


@functools.cache
def made():
    """One of each by name, made when the first test asks for it."""
    table = sampling.exact_errors(KERNEL, MODEL, DATA, max_steps=20)
    state = sampling.start_chains(jr.key(0), MODEL, 8)
    run = sampling.run(KERNEL, MODEL, state, 400, keep=True)
    values, chain = run.values, KERNEL.chain(MODEL)
    modes = markov.modes(chain, tq.observables(MODEL))
    seen = tq.QStruct(KERNEL, 10)(MODEL, DATA), modes
    return {
        "structural": tq.QStruct(KERNEL, 10)(MODEL, DATA),
        "operational": tq.QOperational(KERNEL, 10)(MODEL, DATA),
        "randomised": tq.QStruct(KERNEL, 10).randomised(jr.key(0), MODEL, DATA, 4),
        "sampled": sampling.QSampled(KERNEL, 10, n_chains=2)(jr.key(0), MODEL, DATA),
        "table": table,
        "budget": tq.plan_budget(table, 0.5),
        "comparison": sampling.compare_budgets({"Gibbs": KERNEL}, lambda _: table, 0.5),
        "times": sampling.autocorrelation_time(values),
        "time": sampling.sampled_time(values),
        "certificate": tq.certify(KERNEL, MODEL),
        "statistics": tq.QStruct(KERNEL, 10)(MODEL, DATA).stats,
        "check": markov.Check(None, 1e-12, "no <flip>"),
        "margins": tq.certify(KERNEL, MODEL).cheeger,
        "moments of a window": markov.window_moments(chain, tq.observables(MODEL), 10),
        "solution": markov.solve_resolvent(chain, tq.observables(MODEL)),
        "mode": markov.slowest_mode(chain),
        "gaps": markov.parity_gaps(chain),
        "modes": modes,
        "cluster": modes.cluster(),
        "sensitivity": modes.sensitivity(),
        "channels": tq.log_q_channels(seen, seen),
        "diagnosis": tq.diagnose(KERNEL, MODEL, DATA, 10),
        "assumption": tq.diagnose(KERNEL, MODEL, DATA, 10).assumptions["reversible"],
        "state": state,
        "moments": run.moments,
        "run": run,
        "jackknife": sampling.TableJackknife(
            np.ones((8, 0)), np.ones((8, 0)), np.ones(8)
        ),
    }


# What each shows among other things.
SHOWN = {
    "structural": "Q = ",
    "operational": "squared bias",
    "randomised": "noise known to",
    "sampled": "64 replicates of 2 chains",
    "table": "pairs of burn-in and window of up to 20 steps, exact",
    "budget": "unit updates",
    "comparison": "at equal cost",
    "times": "autocorrelation times of",
    "time": "with 95 % confidence",
    "certificate": "detailed balance",
    "statistics": "4 right-hand sides, at most 0 iterations",
    "check": "tolerance  1e-12",
    "margins": "CheegerMargins",
    "moments of a window": "(4,)",
    "solution": "(16, 4)",
    "mode": "is_odd",
    "gaps": "ParityGaps",
    "modes": "15 modes, T_O =",
    "cluster": "gamma_eff",
    "sensitivity": "share > 1e-06",
    "channels": "rate of the slow modes",
    "diagnosis": "Which assumption fails",
    "assumption": "of imbalance",
    "state": "8 chains of 4 units, after 0 steps",
    "moments": "moments of 400 values of 4 observables in 8 chains",
    "run": "8 chains of 4 units, after 400 steps",
    "jackknife": "none",
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_prompt_shows_what_print_does(name):
    one, text = made()[name], SHOWN[name]
    assert text in str(one) and repr(one) == str(one)


@pytest.mark.parametrize("name", SHOWN)
def test_a_dictionary_has_the_same_numbers(name):
    one = made()[name]
    record = tq.as_dict(one)
    # JSON without what only Python reads.
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    result = record["result"]
    assert result["class"] == type(one).__name__
    for field, value in vars(one).items():
        if isinstance(value, jax.Array) and value.dtype.kind == "f":
            assert np.array_equal(
                np.asarray(result[field], float), value, equal_nan=True
            )


class Cells(html.parser.HTMLParser):
    """The text between the tags, and the depth of those that are open."""

    def __init__(self, source):
        super().__init__()
        self.open, self.words = [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()


@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_shows_the_same_words(name):
    one = made()[name]
    found = Cells(one._repr_html_())
    assert found.words == str(one).split() and not found.open


def test_a_notebook_shows_tables():
    assert made()["certificate"]._repr_html_().count("<tr>") == 8
    assert "no &lt;flip&gt;" in made()["check"]._repr_html_()


@pytest.mark.parametrize("name", SHOWN)
def test_shapes_where_there_are_no_numbers(name):
    one = made()[name]
    seen = []

    @eqx.filter_jit
    def look(one):
        seen.append(repr(one))
        assert Cells(one._repr_html_()).words == seen[0].split()
        return one

    look(one)
    if jax.tree.leaves(eqx.filter(one, eqx.is_array)):
        assert seen[0].startswith(type(one).__name__)
    else:  # numbers of Python are there
        assert seen[0] == str(one)
    shapes = eqx.filter_eval_shape(lambda x: x, one)
    assert isinstance(repr(shapes), str)
    assert Cells(shapes._repr_html_()).words == repr(shapes).split()
    assert isinstance(repr(jax.tree.map(lambda _: object(), one)), str)


def test_a_batch_shows_ranges():
    data = jnp.stack([random_law(2, seed) for seed in (0, 1)])
    batch = eqx.filter_vmap(tq.QStruct(KERNEL, 10), in_axes=(None, 0))(MODEL, data)
    low, high = sorted(batch.q.tolist())
    assert f"Q = {low:.4g} to {high:.4g}" in repr(batch)


@pytest.mark.parametrize("name", SHOWN)
def test_a_batch_of_anything_is_shown(name):
    one = made()[name]
    batch = jax.tree.map(
        lambda x: jnp.stack([x, x]) if isinstance(x, jax.Array) else x, one
    )
    for text in (repr(batch), batch._repr_html_()):
        assert text and "nan" not in text


def test_what_is_deleted_is_not_read():
    one = tq.QStruct(KERNEL, 10)(MODEL, random_law(2, 3))
    one.parameter_signal.delete()
    assert "parameter_signal" in repr(one)


def test_text():
    assert number(jnp.array(0.123456)) == "0.1235"
    assert number(jnp.array([1.0, 3.0])) == "1 to 3"
    assert number(jnp.array([1.0, jnp.nan])) == "nan" and number(jnp.ones(0)) == "none"
    assert number(jnp.array([True, False])) == "1 of 2 true"
    assert number(jnp.array([True])) == "True"
    assert count(1, "chain") == "1 chain" and count(2, "chain") == "2 chains"
    assert aligned([("a", "bcd"), ("ef", "g")]) == ["a   bcd", "ef  g"]
