"""An experiment as frozen dataclasses; every field has one meaning and is checked when the config is built.

Experiment files (`configs/*.py`, ml_collections) and gin files both become these dataclasses, through
`fot_jax.config.build` and `fot_jax.config.gin`. After that no code asks for a default.
"""

from fot_jax.config.crossbatch import (
    CrossbatchConfig,
    ScheduleConfig,
)
from fot_jax.config.data import (
    DataConfig,
    DictionaryConfig,
    SourceConfig,
    VocabularyConfig,
)
from fot_jax.config.enums import (
    AttentionBackend,
    Boundaries,
    ContextGradients,
    DocumentEnd,
    Dtype,
    Family,
    Init,
    LastContext,
    LearningRateKind,
    LossMean,
    MemoryDtype,
    MemoryPositions,
    NeedleKind,
    OptimizerKind,
    PastReading,
    PlanKind,
    Remat,
    Retrieval,
    RopeScaling,
    ScheduleKind,
    SourceKind,
    Trainable,
    VocabularyKind,
)
from fot_jax.config.errors import (
    ConfigError,
    UserError,
    check,
)
from fot_jax.config.experiment import (
    EvaluationConfig,
    ExperimentConfig,
    MemoryConfig,
)
from fot_jax.config.model import (
    ModelConfig,
    RopeConfig,
)
from fot_jax.config.train import (
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "AttentionBackend",
    "Boundaries",
    "ConfigError",
    "ContextGradients",
    "CrossbatchConfig",
    "DataConfig",
    "DictionaryConfig",
    "DocumentEnd",
    "Dtype",
    "EvaluationConfig",
    "ExperimentConfig",
    "Family",
    "Init",
    "LastContext",
    "LearningRateKind",
    "LossMean",
    "MemoryConfig",
    "MemoryDtype",
    "MemoryPositions",
    "MeshConfig",
    "ModelConfig",
    "NeedleKind",
    "OptimizerConfig",
    "OptimizerKind",
    "PastReading",
    "PlanKind",
    "Remat",
    "Retrieval",
    "RopeConfig",
    "RopeScaling",
    "ScheduleConfig",
    "ScheduleKind",
    "SourceConfig",
    "SourceKind",
    "TrainConfig",
    "Trainable",
    "UserError",
    "VocabularyConfig",
    "VocabularyKind",
    "check",
]
