"""Errors: one class for each way to be refused, so that a caller catches what it can mend."""

from __future__ import annotations

from typing import Dict, Type

from . import silt_pb2 as pb


class Error(Exception):
    """Something was refused or failed; the text says what to do."""

    def __init__(self, message: str, retry_after: float = 0.0, expected_sequence: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds
        self.expected_sequence = expected_sequence


class InternalError(Error):
    """siltd failed inside."""


class Invalid(Error):
    """The request itself is wrong."""


class NotFound(Error):
    """No such stream."""


class Exists(Error):
    """It exists with other options."""


class Busy(Error):
    """Not now: try again after retry_after seconds."""


class Gap(Error):
    """A message is missing before this one."""


class TooLarge(Error):
    pass


class NoSpace(Error):
    """The memory plan or the disk has no room."""


class Denied(Error):
    pass


class Unsupported(Error):
    pass


class ShuttingDown(Error):
    pass


class Unreachable(Error, ConnectionError):
    """No siltd answers there."""


class Lost(Error, ConnectionError):
    """siltd went away before the end, and what was asked is not sent twice."""


class Silent(Error, TimeoutError):
    """siltd is connected but did not answer in time."""


_KINDS: Dict[int, Type[Error]] = {
    pb.Error.INTERNAL: InternalError,
    pb.Error.INVALID: Invalid,
    pb.Error.NOT_FOUND: NotFound,
    pb.Error.EXISTS: Exists,
    pb.Error.BUSY: Busy,
    pb.Error.GAP: Gap,
    pb.Error.TOO_LARGE: TooLarge,
    pb.Error.NO_SPACE: NoSpace,
    pb.Error.DENIED: Denied,
    pb.Error.UNSUPPORTED: Unsupported,
    pb.Error.SHUTTING_DOWN: ShuttingDown,
}


def of_wire(error: pb.Error) -> Error:
    # A newer siltd may know kinds that this package does not.
    return _KINDS.get(error.code, Error)(error.message, error.retry_us / 1e6,
                                         error.expected_sequence)
