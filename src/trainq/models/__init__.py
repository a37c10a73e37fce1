"""Energy-based models and their exact laws."""

from ._base import (
    AbstractEnergyModel as AbstractEnergyModel,
    Tempered as Tempered,
    checked as checked,
    parameters as parameters,
    require_model as require_model,
)
from ._boltzmann import BoltzmannMachine as BoltzmannMachine
from ._hypernetwork import CouplingNetwork as CouplingNetwork
from ._laws import (
    empirical_distribution as empirical_distribution,
    entropy as entropy,
    expectation as expectation,
    free_energies as free_energies,
    kl_divergence as kl_divergence,
    kl_gradient as kl_gradient,
    log_laws as log_laws,
    log_partition as log_partition,
    log_stationary as log_stationary,
    mean_observables as mean_observables,
    observables as observables,
    visible_distribution as visible_distribution,
)
from ._planted import planted_rbm as planted_rbm
from ._rbm import RBM as RBM
