"""What every action on a build takes."""

from __future__ import annotations

from pydantic import Field

from agent.plugin import EngineParameters


class BuildParameters(EngineParameters):
    """Which engine's build, and of which commit."""

    commit: str = Field(default="", pattern=r"^([0-9a-f]{40})?$")
    """The commit as its full hash; empty: the configured one."""
