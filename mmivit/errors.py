"""What went wrong and can be mended by whoever ran it: one base class, told in one line."""


class UserError(Exception):
    """Something to mend before it can go on; the message says what was found and how."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be used: unsafe, unreadable, or of something else."""


class LaunchError(UserError):
    """A config, a file or a setting that is missing or does not fit."""


class TrainingError(UserError, RuntimeError):
    """A run that had to stop; the message says why, and how to go on."""


class ExportError(UserError):
    """A model that cannot be exported, or whose graph does not compute what torch does."""
