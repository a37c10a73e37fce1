"""Energy-based models, their exact laws, data to learn from, and starts of chains."""

from ._base import (
    AbstractEnergyModel as AbstractEnergyModel,
    checked as checked,
    exactly as exactly,
    parameters as parameters,
    require_model as require_model,
)
from ._boltzmann import BoltzmannMachine as BoltzmannMachine
from ._clamped import Clamped as Clamped
from ._data import (
    Data as Data,
    SampleWeights as SampleWeights,
    VisibleLaw as VisibleLaw,
    check_data as check_data,
    check_law as check_law,
    check_weights as check_weights,
    data_phase as data_phase,
    data_variance as data_variance,
    draw_visible as draw_visible,
    empirical_distribution as empirical_distribution,
    gradient_of_kl as gradient_of_kl,
    kl_divergence as kl_divergence,
    kl_gradient as kl_gradient,
    log_likelihood as log_likelihood,
    require_data_phase as require_data_phase,
)
from ._devices import (
    clip as clip,
    device_bias as device_bias,
    quantise as quantise,
    running as running,
    scatter as scatter,
)
from ._families import (
    curie_weiss as curie_weiss,
    hopfield as hopfield,
    paired_rbm as paired_rbm,
    planted_rbm as planted_rbm,
    random_patterns as random_patterns,
    sherrington_kirkpatrick as sherrington_kirkpatrick,
)
from ._hypernetwork import CouplingNetwork as CouplingNetwork
from ._laws import (
    entropy as entropy,
    expectation as expectation,
    free_energies as free_energies,
    free_energy as free_energy,
    log_laws as log_laws,
    log_partition as log_partition,
    log_stationary as log_stationary,
    mean_observables as mean_observables,
    observables as observables,
    visible_distribution as visible_distribution,
)
from ._rbm import RBM as RBM
from ._starts import (
    AbstractStart as AbstractStart,
    At as At,
    FromData as FromData,
    Law as Law,
    Stationary as Stationary,
    Uniform as Uniform,
    check_start as check_start,
    initial_law as initial_law,
    initial_states as initial_states,
)
from ._tempered import Tempered as Tempered
