"""The bed's errors, so that a test can tell "cannot be tested here" from "the bed is broken".

BedError
    UnavailableError        this machine cannot provide it (not root, no archive answers): skip, with the reason
        NotServedError      an archive that a machine need not reach: skipped even where the host tier is required
"""

from __future__ import annotations


class BedError(Exception):
    """The bed did not do what it was asked; the message says what and shows the output."""


class UnavailableError(BedError):
    """Something the bed needs is not to be had on this machine; the message is the reason a skip shows."""


class NotServedError(UnavailableError):
    """Ubuntu's archive: another distribution's, which many a Debian machine cannot reach."""
