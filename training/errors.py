"""The errors of training; each means wrong input, and ends a command with one line on stderr.

TrainingError
├── ArgumentError       an argument that argparse alone cannot judge
├── DataError           the data cannot be used
├── RunError            the run cannot start or continue as asked
│   └── DivergenceError a loss or a metric is not finite
├── TuningError         the study cannot start or continue as asked
├── PrivacyError        the private training or its study cannot start as asked
├── ExportError         the model was not published
├── EvaluationError     the model cannot be evaluated on this data
├── SourceError         the model that another is to be made from does not fit
├── PruningError        the network cannot be pruned as asked
├── QuantizationError   the version on fewer bits was not published
├── ConfidenceError     the model with an out-of-distribution score was not published
├── EnsembleError       the ensemble was not published
├── GradientError       the graph of the gradient was not published
├── NetworkError        the network of another program was not imported
└── SigningError        the version was not signed

The message says what was seen and what was expected.
"""


class TrainingError(Exception):
    """Base of every error that training raises on purpose."""


class ArgumentError(TrainingError):
    """An argument that argparse alone cannot judge."""


class DataError(TrainingError):
    """The data cannot be used; the message names the file."""


class RunError(TrainingError):
    """The run cannot start or continue as asked; the message says why and what to do."""


class DivergenceError(RunError):
    """A loss or a metric is not finite: these hyperparameters do not train."""


class TuningError(TrainingError):
    """The study cannot start or continue as asked; the message says why and what to do."""


class PrivacyError(TrainingError):
    """The private training or its study cannot start as asked; the message says why and what to do."""


class ExportError(TrainingError):
    """The model was not published."""


class EvaluationError(TrainingError):
    """The model cannot be evaluated on this data."""


class SourceError(TrainingError):
    """The model that another is to be made from does not fit."""


class PruningError(TrainingError):
    """The network cannot be pruned as asked; the message says why and what to do."""


class QuantizationError(TrainingError):
    """The version on fewer bits was not published."""


class ConfidenceError(TrainingError):
    """The model with an out-of-distribution score was not published."""


class EnsembleError(TrainingError):
    """The ensemble was not published."""


class GradientError(TrainingError):
    """The graph of the gradient was not published."""


class NetworkError(TrainingError):
    """The network of another program was not imported."""


class SigningError(TrainingError):
    """The version was not signed."""
