"""What several causes read from engine.release: whether going back to an earlier release is the first thing to try."""

from __future__ import annotations

from agent.model import Moment, Results

SINCE_S = 86400.0
"""For so long after a switch a failure is first of all the release's."""


def way_back(results: Results, subject: str, now: Moment) -> str:
    """The release that an engine would go back to, as it serves one that it was switched to a short while ago.

    "" when it was not, when nothing earlier is proven, and after a way back: who is back and fails has another fault.
    """
    release = results.one("engine.release", subject)
    at = release.value("switch.at") if release is not None else None
    if release is None or at is None or release.value("switch.rollback"):
        return ""
    if release.value("switch.new") != release.value("release.path") or not 0 <= now.wall - float(at) < SINCE_S:
        return ""
    return str(release.value("fallback") or "")
