"""The errors a user can meet. Each message says what is wrong, where, and what to write instead."""


class SimPOError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback.

    Attributes:
        exit_code: what the command line ends with.
    """

    exit_code = 2


class ConfigError(SimPOError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DataError(SimPOError, ValueError):
    """A data source cannot be read, or holds nothing that can be trained on."""


class ModelError(SimPOError, ValueError):
    """A model, tokenizer or adapter cannot be loaded or cannot be served by the packed forward."""


class Lost(ModelError):
    """A run cannot go on as it is: its loss, its gradients or its language are gone."""


class StoreError(SimPOError):
    """Finished records cannot be written or read, or are not those of this run."""


class EngineError(SimPOError):
    """No response can be sampled: servers do not answer or refuse every request, or an engine is not installed."""


class Interrupted(SimPOError):
    """A signal ended a run in order; the same command goes on with it. The code is EX_TEMPFAIL of sysexits.h."""

    exit_code = 75
