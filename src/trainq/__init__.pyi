# What `import trainq` offers. `__init__.py` reads this file, and loads each part where
# it is first used.

from . import (
    interop as interop,
    markov as markov,
    models as models,
    plot as plot,
    predictors as predictors,
    sampling as sampling,
    solvers as solvers,
)
from ._checks import PrecisionWarning as PrecisionWarning
from ._files import load as load, save as save
from ._progress import progress as progress
from ._records import as_dict as as_dict
from ._versions import show_versions as show_versions
from .markov import (
    AlternatingBlockGibbs as AlternatingBlockGibbs,
    Lazy as Lazy,
    Mixture as Mixture,
    Palindrome as Palindrome,
    PalindromicBlockGibbs as PalindromicBlockGibbs,
    ParallelTempering as ParallelTempering,
    Power as Power,
    RandomScanBlockGibbs as RandomScanBlockGibbs,
    RandomScanGibbs as RandomScanGibbs,
    RandomScanMetropolis as RandomScanMetropolis,
    Symmetrised as Symmetrised,
    certify as certify,
)
from .models import (
    RBM as RBM,
    AbstractEnergyModel as AbstractEnergyModel,
    At as At,
    BoltzmannMachine as BoltzmannMachine,
    CouplingNetwork as CouplingNetwork,
    FromData as FromData,
    Law as Law,
    Stationary as Stationary,
    Uniform as Uniform,
    clip as clip,
    curie_weiss as curie_weiss,
    empirical_distribution as empirical_distribution,
    entropy as entropy,
    expectation as expectation,
    free_energies as free_energies,
    free_energy as free_energy,
    hopfield as hopfield,
    kl_divergence as kl_divergence,
    kl_gradient as kl_gradient,
    log_likelihood as log_likelihood,
    log_partition as log_partition,
    log_stationary as log_stationary,
    mean_observables as mean_observables,
    observables as observables,
    paired_rbm as paired_rbm,
    planted_rbm as planted_rbm,
    quantise as quantise,
    random_patterns as random_patterns,
    scatter as scatter,
    sherrington_kirkpatrick as sherrington_kirkpatrick,
    visible_distribution as visible_distribution,
)
from .predictors import (
    GradientSNR as GradientSNR,
    QOperational as QOperational,
    QStruct as QStruct,
    SingleGap as SingleGap,
    diagnose as diagnose,
    log_q_channels as log_q_channels,
    pool as pool,
)
from .sampling import (
    Budget as Budget,
    GradientEstimator as GradientEstimator,
    QSampled as QSampled,
    certify_sampler as certify_sampler,
    plan_budget as plan_budget,
    run as run,
    run_until as run_until,
    start_chains as start_chains,
)
from .solvers import (
    Auto as Auto,
    ConjugateGradient as ConjugateGradient,
    Direct as Direct,
)

__version__: str
