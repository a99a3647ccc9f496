"""Make the kernel of the saved driver the one that boots next, and stay so when another kernel comes.

GRUB's saved entry is set to that kernel's own entry; where the configuration does not use the saved entry, a drop-in in
/etc/default/grub.d says so and the menu is written again. A one-shot entry that waits is taken away. What was there is
noted for the undo. Any other boot loader is refused, with the kernel to choose by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from agent.errors import FileTrouble, HostError
from agent.host import Host, boot, grub, saving
from agent.host.saved_driver import SET_NAME
from agent.model import Json, Risk
from agent.plugin import (
    Action,
    Command,
    Condition,
    Noop,
    Parameters,
    Plan,
    PlanStep,
    Refuse,
    RemoveFile,
    Target,
    Wait,
    WriteFile,
)

DROP_IN = "/etc/default/grub.d/zz-holdfast.cfg"
TEXT = "# Written by Holdfast: boot the saved entry (grub-set-default), not the newest kernel.\nGRUB_DEFAULT=saved\n"
GRUB_S = 30.0
MENU_S = 120.0


class BootSetDefaultParameters(Parameters):
    """Which kernel."""

    saved: str = Field(default="", pattern=SET_NAME)
    """The saved set whose kernel it is (DRIVER-KERNEL); empty: that of the locked driver."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """The saved entry and, where the configuration needs it, a new menu."""
    saved = saving.locked_set(host, params.saved)
    if isinstance(saved, str):
        return Plan((Refuse(saved, "no-saved-driver"),))
    release = saved.manifest.kernel
    now = boot.next_boot(host)
    stays = (now.pinned and not now.how.startswith("one-shot")) or now.by == "newest"
    if now.release == release and stays:
        return Plan((Noop(f"kernel {release} boots next already ({now.how})"),))
    if not host.files.exists(f"/boot/vmlinuz-{release}"):
        back = Condition(f"kernel {release} is in /boot", lambda host: host.files.exists(f"/boot/vmlinuz-{release}"))
        return Plan((Wait(back, 0.0, why=f"kernel {release} is not in /boot"),))
    folder = next((each for each in boot.GRUB_FOLDERS if host.files.exists(f"{each}/grub.cfg")), None)
    if folder is None or now.by not in ("GRUB", ""):
        words = f"the boot loader is not GRUB ({now.by or now.problem}): choose kernel {release} there by hand"
        return Plan((Refuse(words, "no-grub"),))
    try:
        return _grub(host, folder, release)
    except FileTrouble as trouble:
        return Plan((Refuse(f"{trouble.message}: choose kernel {release} by hand", "grub-unclear"),))


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Put the saved entry, the one-shot entry and the configuration back."""
    folder = str(before["folder"])
    steps: list[PlanStep] = []
    variables = _environment(host, folder)
    for name in ("saved_entry", "next_entry"):
        old = str(before.get(name) or "")
        if variables.get(name, "") != old:
            steps.append(_set(folder, name, old))
    if before.get("drop_in") and host.files.exists(DROP_IN):
        steps += [RemoveFile(DROP_IN), _menu(folder)]
    return Plan(tuple(steps) or (Noop("nothing was changed", untouched=True),))


def _grub(host: Host, folder: str, release: str) -> Plan:
    """Raises FileTrouble where GRUB's files do not say what is needed."""
    menu = grub.menu(boot.grub_text(host, folder))
    entry = grub.entry_of(menu, release)
    variables = _environment(host, folder)
    if entry is None:
        return Plan(
            (Refuse(f"GRUB's menu has no entry of its own for kernel {release}: update-grub", "no-boot-entry"),)
        )
    uses_saved = "${saved_entry}" in menu.defaults
    before: dict[str, Json] = {
        "folder": folder,
        "saved_entry": variables.get("saved_entry", ""),
        "next_entry": variables.get("next_entry", ""),
        "drop_in": not uses_saved,
    }
    steps: list[PlanStep] = [_set(folder, "saved_entry", entry)]
    if variables.get("next_entry"):
        steps.append(_set(folder, "next_entry", ""))
    if not uses_saved:
        steps += [WriteFile(DROP_IN, TEXT), _menu(folder)]
    right = Condition(f"kernel {release} boots next", lambda host: _boots(host, release))
    return Plan((*steps, Wait(right, 0.0), Noop(f"kernel {release} boots next: {entry}")), before)


def _boots(host: Host, release: str) -> bool:
    """True, or raises HostError with what boots instead."""
    now = boot.next_boot(host)
    if now.release != release:
        instead = now.problem or f"kernel {now.release} ({now.how})"
        raise HostError(f"GRUB does not boot kernel {release} next: {instead}; choose it by hand (grub-set-default)")
    return True


def _environment(host: Host, folder: str) -> dict[str, str]:
    path = f"{folder}/grubenv"
    return grub.environment(host.files.read_text(path)) if host.files.exists(path) else {}


def _set(folder: str, name: str, value: str) -> Command:
    words = ("set", f"{name}={value}") if value else ("unset", name)
    return Command(("grub-editenv", f"{folder}/grubenv", *words), GRUB_S)


def _menu(folder: str) -> Command:
    return Command(("grub-mkconfig", "--output", f"{folder}/grub.cfg"), MENU_S, words="writing GRUB's menu")


ACTION = Action(id="boot.set_default", params=BootSetDefaultParameters, risk=Risk.SERVICE, plan=plan, undo=undo)
