"""The example of published numbers: its figures that are known to every digit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import published
import pytest
from helpers import DIRECT, assert_close

import trainq as tq


def rows(part):
    return {row.what: row for row in part()}


def test_figures_that_are_stated_agree_to_the_digit():
    found = rows(published.symmetrised)
    assert {row.verdict for row in found.values()} == {"agrees"}
    assert found["T_O of ½ (P_fwd + P_rev)"].ours == "1409.42"


def test_gaps_of_a_sweep_are_those_of_a_dense_power(monkeypatch):
    monkeypatch.setattr(published, "CONSTANTS", published.CONSTANTS.quick())
    found = rows(published.modes)
    assert {row.verdict for row in found.values()} == {"agrees"}
    # By hand: the matrix of a step, its power, the cluster of three.
    model = published.two_patterns(4, (1, 2))
    weights = np.asarray(model.weights)
    energies = oracle.rbm_energies(weights)
    law = oracle.law(energies)
    n, size = 8, 256
    matrix = np.zeros((size, size))
    for x in range(size):
        for bit in range(n):
            y = x ^ (1 << bit)
            matrix[x, y] = 1 / n / (1 + np.exp(energies[y] - energies[x]))
        matrix[x, x] = 1 - matrix[x].sum()
    root = np.sqrt(law)
    power = np.linalg.matrix_power(root[:, None] * matrix / root[None, :], n)
    values, vectors = np.linalg.eigh((power + power.T) / 2)
    states = oracle.states(n)
    f = -(states[:, :4, None] * states[:, None, 4:]).reshape(size, 16)
    weight = ((root[:, None] * (f - law @ f)).T @ vectors) ** 2
    mu, gaps = weight.sum(axis=0), 1 - values
    relevant = mu / mu.sum() > 1e-6
    slowest = gaps[relevant].min()
    chosen = relevant & (gaps <= 3 * slowest)
    expected = mu[chosen].sum() / (mu[chosen] / gaps[chosen]).sum()
    cluster = published.sweep_modes(model).cluster()
    assert_close(cluster.gamma_eff, expected, DIRECT)


def test_a_digit_that_differs_is_told():
    row = published.same_digits("a figure", "0.648", 0.6485001)
    assert (row.ours, row.verdict) == ("0.649", "does not")
    assert published.same_digits("a figure", "0.648", 0.64849).verdict == "agrees"


def test_all_states_are_in_the_order_of_the_library():
    model = tq.RBM(jax.random.normal(jax.random.key(0), (2, 3)))
    assert_close(model.energy(jnp.asarray(published.all_states(5))), model.energies(), DIRECT)


@pytest.mark.slow
def test_every_part_has_its_rows(tmp_path, capsys):
    published.main(["--quick", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "summary.json").read_text())
    assert {row["verdict"] for row in record["rows"]} <= set(published.VERDICTS)
    assert set(record["seconds"]) == set(published.PARTS)
    assert "Published, and ours" in capsys.readouterr().out


def test_a_ladder_is_read_from_its_summary(tmp_path):
    doses = [{"weight": 1.0, "median": 2.5}, {"weight": 0.1, "median": 1.1}]
    steps = {f"(4,2) λ = {w}": {"c25": 90} for w in ("0", "0.1")}
    steps |= {"(4,3) λ = 0.1": {"c25": 91}, "(5,2) λ = 0.1": {"c25": 92}}
    steps |= {"(4,2) λ = 1": {"c25": None}}
    summary = {"dose_response": doses, "p3": {"steps": steps}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    ratio, guard = published.ladder(tmp_path)
    assert (ratio.ours, ratio.verdict) == ("0.1: 1.10, 1: 2.50", "agrees")
    assert (guard.ours, guard.verdict) == ("0.1: 3, 1: 0", "agrees")
