"""The restricted Boltzmann machine of scikit-learn, and back."""

import numpy as np

from .._checks import needed_for, require_concrete
from ..models import RBM, checked


with needed_for("trainq.interop.sklearn", "scikit-learn"):
    from sklearn.neural_network import BernoulliRBM
    from sklearn.utils.validation import check_is_fitted


def from_sklearn(estimator: BernoulliRBM) -> RBM:
    """The machine of a fitted `BernoulliRBM`, whose units are 0 and 1: by
    [`trainq.RBM`][]`.from_bits`. Its data become spins by `2 * data - 1`.

    **Arguments:**

    - `estimator`: the estimator.

    **Returns:** an [`trainq.RBM`][] with the features as visible units, the components
    as hidden ones, and with biases.

    **Raises:** `ValueError` for another thing than a `BernoulliRBM`, or
    `sklearn.exceptions.NotFittedError`, which is one, before it is fitted.

    !!! example

        ```python
        from sklearn.neural_network import BernoulliRBM
        from trainq.interop.sklearn import from_sklearn

        bits = jnp.array([[0, 0, 1], [1, 1, 0], [1, 1, 1]])
        learnt = BernoulliRBM(n_components=2, n_iter=5).fit(bits)
        model = from_sklearn(learnt)
        print(tq.log_likelihood(model, 2 * bits - 1))
        ```
    """
    if not isinstance(estimator, BernoulliRBM):
        raise ValueError(
            "estimator is a `sklearn.neural_network.BernoulliRBM`, but a "
            f"{type(estimator).__name__} was given."
        )
    check_is_fitted(estimator)
    return RBM.from_bits(
        np.asarray(estimator.components_).T,
        estimator.intercept_visible_,
        estimator.intercept_hidden_,
    )


def to_sklearn(model: RBM) -> BernoulliRBM:
    """A `BernoulliRBM` with the law of a machine, as if it had been fitted: to score,
    to transform, or to go on fitting by `partial_fit`.

    **Arguments:**

    - `model`: the machine.

    **Returns:** an estimator of 0/1 units, with the settings that scikit-learn has by
    default: others by `set_params`.

    **Raises:** `ValueError` for another thing than an [`trainq.RBM`][], and under
    `jax.jit` and its like; a run-time error if a parameter is not finite.

    !!! example

        ```python
        from trainq.interop.sklearn import to_sklearn

        estimator = to_sklearn(model).set_params(learning_rate=0.01)
        features = estimator.transform(jnp.array([[0, 1, 1]]))
        assert features.shape == (1, 2)
        ```
    """
    require_concrete("An estimator of scikit-learn", model=model)
    if not isinstance(model, RBM):
        raise ValueError(
            "scikit-learn has restricted Boltzmann machines: an `RBM` is needed, but a "
            f"{type(model).__name__} was given."
        )
    # Its own, and in its order: it learns in place.
    weights, visible, hidden = map(np.array, checked(model).to_bits())
    estimator = BernoulliRBM(n_components=model.n_hidden)
    estimator.components_ = np.array(weights.T, order="F")
    estimator.intercept_visible_ = visible
    estimator.intercept_hidden_ = hidden
    # What `fit` notes of its data, under the names that scikit-learn documents.
    vars(estimator).update(
        n_features_in_=model.n_visible, _n_features_out=model.n_hidden
    )
    return estimator
