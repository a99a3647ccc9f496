"""What GRUB will boot next, from grub.cfg and grubenv: pure functions over their texts.

The rules are GRUB's own: `get_entry_number` and `grub_menu_execute_entry` in grub-core/normal/menu.c for what a default
means, util/grub.d/00_header.in for how the default comes about. What these rules leave open (a value that is computed,
a default that stops at a submenu) is a FileTrouble of kind malformed, never a guess.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.errors import FileTrouble

ENVIRONMENT_HEAD = "# GRUB Environment Block\n"
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
_KERNEL_COMMANDS = frozenset({"linux", "linux16", "linuxefi"})
_MODULE_COMMANDS = frozenset({"module", "module2"})  # Xen loads the kernel as a module
_KERNEL_NAME = re.compile(r"(?:^|/)vmlinu[xz](?:-(?P<release>[^/]+))?$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the menu. A submenu has `entries`; `kernel` is the path that it loads, as GRUB sees it."""

    title: str
    id: str = ""
    kernel: str = ""
    parameters: str = ""
    initrd: str = ""
    entries: tuple[Entry, ...] | None = None
    conditional: bool = False


@dataclass(frozen=True, slots=True)
class Menu:
    """The menu, and every value that the configuration gives to `default` outside an entry, in order."""

    entries: tuple[Entry, ...]
    defaults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The entry that boots next, its path through the submenus, and why: one-shot, saved, default or first.

    named: the entry was chosen by its title or id; a number means another one once the menu changes.
    """

    entry: Entry
    path: tuple[str, ...]
    why: str
    named: bool = False


def unclear(why: str) -> FileTrouble:
    """What is raised when GRUB's files do not say what it will do."""
    return FileTrouble(why, kind="malformed", where="grub.cfg")


def environment(text: str) -> dict[str, str]:
    """The variables in grubenv. Raises FileTrouble(malformed) when it is no environment block."""
    if not text.startswith(ENVIRONMENT_HEAD):
        raise unclear("grubenv is no GRUB environment block")
    found: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] = re.sub(r"\\(.)", r"\1", value)
    return found


def menu(text: str) -> Menu:
    """The menu that grub.cfg describes. Raises FileTrouble(malformed) when its braces or quotes do not match."""
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise unclear(f"line {number} of grub.cfg is not understood: {error}") from error
        reader.take(words)
    return reader.end()


def choose(found: Menu, variables: Mapping[str, str]) -> Choice:
    """The entry that boots next. Raises FileTrouble(malformed) when that cannot be told or when there is none."""
    if not found.entries:
        raise unclear("grub.cfg has no menu entry")
    value, why = _default(found.defaults, variables)
    index = _find(found.entries, value)
    if index is None:  # as GRUB does: a default that names nothing is the first entry
        index, value, why = 0, "0", f"first entry ({why} names no entry: {value!r})"
    path: list[str] = []
    entries = found.entries
    while True:
        entry = entries[index]
        numbered = value.strip()[:1].isdigit()
        if entry.conditional or (numbered and any(each.conditional for each in entries[:index])):
            raise unclear("the default depends on a condition in grub.cfg")
        path.append(entry.title)
        if entry.entries is None:
            return Choice(entry, tuple(path), why, named=not numbered)
        value = _rest(value)
        entries = entry.entries
        found_index = _find(entries, value) if value else None
        if found_index is None:
            raise unclear(f"the default stops at the submenu {entry.title!r}")
        index = found_index


def entry_of(found: Menu, release: str) -> str | None:
    """What `saved_entry` must be so that this kernel's own entry boots; None where the menu has none. Pure.

    Its own entry carries the release in its title or id, so that it stays this kernel's when another comes; a recovery
    entry is none.
    """

    def within(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
        for entry in entries:
            if entry.entries is not None:
                yield from ((entry, *path) for path in within(entry.entries))
            elif kernel_release(entry.kernel) == release and not entry.conditional:
                yield (entry,)

    for path in within(found.entries):
        last = path[-1]
        single = re.search(r"(?:^|\s)(?:single|recovery)(?:\s|$)", last.parameters)
        if release in f"{last.title} {last.id}" and not single and not any(each.conditional for each in path):
            return ">".join((each.id or each.title).replace(">", ">>") for each in path)
    return None


def kernel_release(path: str) -> str | None:
    """The release in a kernel's file name: /boot/vmlinuz-6.8.0-31-generic is 6.8.0-31-generic; None without one."""
    matched = _KERNEL_NAME.search(path)
    return matched["release"] if matched else None


def _default(defaults: Sequence[str], variables: Mapping[str, str]) -> tuple[str, str]:
    """What `default` is when the menu opens, and why.

    00_header assigns `${next_entry}` where that is set (grub-reboot), else the configured default. A later file may
    assign it again, and the last one wins.
    """
    if variables.get("initrdfail") == "1" and variables.get("prev_entry"):  # Ubuntu's fallback after a failed boot
        return variables["prev_entry"], "fallback after a failed boot"
    once = variables.get("next_entry", "")
    if once and "${next_entry}" in defaults:
        return once, "one-shot entry"
    ordinary = [value for value in defaults if value != "${next_entry}"]
    if not ordinary:
        return "0", "first entry"
    value = ordinary[-1]
    if len(set(ordinary)) > 1:
        raise unclear(f"grub.cfg sets several defaults: {', '.join(dict.fromkeys(ordinary))}")
    if value == "${saved_entry}":
        saved = variables.get("saved_entry", "")
        return (saved, "saved entry") if saved else ("0", "first entry (nothing is saved)")
    if _VARIABLE.search(value):
        raise unclear(f"the default is computed: {value}")
    return (value, "configured default") if value else ("0", "first entry")


def _find(entries: Sequence[Entry], value: str) -> int | None:
    """The entry that the first part of a default names: a number, or a title or id. None when there is none."""
    number = re.match(r"\s*(0[xX][0-9a-fA-F]+|\d+)", value)
    if number:
        text = number[1]
        index = int(text, 16) if text[:2] in ("0x", "0X") else int(text, 8 if re.fullmatch(r"0[0-7]+", text) else 10)
        return index if index < len(entries) else None
    wanted = _first(value)
    return next((i for i, entry in enumerate(entries) if wanted and wanted in (entry.title, entry.id)), None)


def _parts(value: str) -> list[str]:
    """The parts between ">"; ">>" is a ">" within a title."""
    return [part.replace("\0", ">") for part in value.replace(">>", "\0").split(">")]


def _first(value: str) -> str:
    return _parts(value)[0]


def _rest(value: str) -> str:
    return ">".join(part.replace(">", ">>") for part in _parts(value)[1:])


class _Reader:
    """Takes grub.cfg line by line: which braces and conditions are open, and the entries so far."""

    def __init__(self) -> None:
        self._open: list[_Block] = [_Block("file")]
        self._conditions = 0
        self._defaults: list[str] = []

    def take(self, words: list[str]) -> None:
        """One line as the shell would split it."""
        for command in _commands(words):
            self._command(command)

    def end(self) -> Menu:
        """The menu. Raises FileTrouble(malformed) when something is still open."""
        if len(self._open) != 1:
            raise unclear("a block in grub.cfg is not closed: it was cut off")
        return Menu(tuple(self._open[0].entries), tuple(self._defaults))

    def _command(self, words: list[str]) -> None:
        name = words[0]
        if name in ("menuentry", "submenu") and words[-1] == "{":
            self._open.append(_Block(name, *_name_and_id(words[1:-1]), conditional=self._conditions > 0))
        elif words[-1] == "{":
            self._open.append(_Block("function"))
        elif name == "}":
            self._close()
        elif name in ("if", "while", "until", "for"):
            self._conditions += 1
        elif name in ("fi", "done"):
            self._conditions = max(0, self._conditions - 1)
        elif name in ("set", "default") or name.startswith("default="):
            self._assign(words)
        else:
            self._inside(name, words[1:])

    def _assign(self, words: list[str]) -> None:
        name, equals, value = (words[1] if words[0] == "set" and len(words) > 1 else words[0]).partition("=")
        if name == "default" and equals and self._open[-1].kind == "file":
            self._defaults.append(value)

    def _inside(self, name: str, words: list[str]) -> None:
        block = self._open[-1]
        if block.kind != "menuentry" or not words:
            return
        if name in _KERNEL_COMMANDS or (name in _MODULE_COMMANDS and _KERNEL_NAME.search(words[0])):
            block.kernel, block.parameters = words[0], " ".join(words[1:])
        elif name in ("initrd", "initrdefi", "initrd16") and not block.initrd:
            # Early microcode stands before the real one; the last is the root file system's.
            block.initrd = words[-1]

    def _close(self) -> None:
        block = self._open.pop()
        if not self._open:
            raise unclear("a block in grub.cfg is closed that was never opened")
        if block.kind in ("menuentry", "submenu"):
            inside = tuple(block.entries) if block.kind == "submenu" else None
            self._open[-1].entries.append(
                Entry(block.title, block.id, block.kernel, block.parameters, block.initrd, inside, block.conditional)
            )


@dataclass
class _Block:
    kind: str
    title: str = ""
    id: str = ""
    conditional: bool = False
    kernel: str = ""
    parameters: str = ""
    initrd: str = ""

    def __post_init__(self) -> None:
        self.entries: list[Entry] = []


def _commands(words: list[str]) -> Iterator[list[str]]:
    """The commands of one line: parts between ";" (also glued to a word), without the words that only structure."""
    command: list[str] = []
    for word in words:
        bare = word.rstrip(";") if word.endswith(";") else word
        if bare and not (bare in ("then", "do", "else") and not command):
            command.append(bare)
        if word.endswith(";") or word == "}":
            if command:
                yield command
            command = []
    if command:
        yield command


def _name_and_id(words: list[str]) -> tuple[str, str]:
    """Title and id of an entry: `'TITLE' --class x $menuentry_id_option 'ID'`, or --id ID."""
    title = words[0] if words else ""
    for option in ("$menuentry_id_option", "--id"):
        if option in words[:-1]:
            return title, words[words.index(option) + 1]
    glued = next((word.removeprefix("--id=") for word in words if word.startswith("--id=")), "")
    return title, glued
