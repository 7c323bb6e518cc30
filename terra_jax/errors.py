"""Exceptions raised at the library's boundary: each message is one line that names the culprit and the cure."""


class TerraJaxError(Exception):
    """Anything a user can mend; the command line prints it and exits with status 2."""


class ConfigError(TerraJaxError):
    """An unknown, missing or contradictory option."""


class WeightsError(TerraJaxError):
    """A weight file that is unsafe, unreadable or does not fit the model."""


class MissingProcessError(TerraJaxError):
    """Another process of the run did not come, or is gone: the same command on all hosts goes on (exit status 3)."""


class CheckpointError(TerraJaxError):
    """A working folder or checkpoint that is missing, damaged or belongs to another run."""
