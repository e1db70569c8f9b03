"""Errors that a user is shown as one line."""


class MmrlError(Exception):
    """Something the user can mend; its text says what, where and how."""


class MediaError(MmrlError):
    """A medium cannot be shown to a model."""


class DataError(MmrlError):
    """A row cannot be used, or too many cannot."""


class ConfigError(MmrlError):
    """The run cannot start as it is configured."""


class StoppedError(MmrlError):
    """The user asked the run to stop; where it stands is saved."""
