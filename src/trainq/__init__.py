"""Exact, differentiable signal-to-noise of energy-based training."""

from importlib.metadata import version

from . import (
    markov as markov,
    models as models,
    predictors as predictors,
    sampling as sampling,
)
from .markov import (
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    Auto as Auto,
    ConjugateGradient as ConjugateGradient,
    Direct as Direct,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    SystematicScanGibbs as SystematicScanGibbs,
    certify as certify,
)
from .models import (
    RBM as RBM,
    AbstractEnergyModel as AbstractEnergyModel,
    BoltzmannMachine as BoltzmannMachine,
    CouplingNetwork as CouplingNetwork,
    empirical_distribution as empirical_distribution,
    entropy as entropy,
    expectation as expectation,
    free_energy as free_energy,
    kl_divergence as kl_divergence,
    kl_gradient as kl_gradient,
    log_partition as log_partition,
    mean_observables as mean_observables,
    observables as observables,
    planted_rbm as planted_rbm,
    visible_distribution as visible_distribution,
)
from .predictors import (
    GradientSNR as GradientSNR,
    OperationalSNR as OperationalSNR,
    QOperational as QOperational,
    QStruct as QStruct,
    SingleGap as SingleGap,
    pool as pool,
)
from .sampling import plan_budget as plan_budget


__version__ = version("trainq")
