"""Freeze or spin one thread of a running process with ptrace, until told to release it.

Usage: ``thread_fault.py freeze|spin PID [TID]``. Prints ``held`` when the fault is in, then waits for its standard
input to close (or for the process to die) and undoes it. Works from outside the host with this machine's process
numbers, or inside it with the host's own; the standard library is enough. x86-64 only.

freeze: the thread stands still, as if its GPU call never returned. Its state reads ``t``, which a real hang's does
not; nothing may key on that.
spin: the thread burns its core in a two-byte loop written over the program's entry point, which has run for the
last time when the program's main() began. It is not traced while it spins: signals find it as usual.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys
from collections.abc import Callable
from pathlib import Path

PTRACE_POKETEXT, PTRACE_CONT, PTRACE_DETACH = 4, 7, 17
PTRACE_GETREGS, PTRACE_SETREGS = 12, 13
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000
RELEASE_POLL_S = 0.02
JUMP_TO_ITSELF = b"\xeb\xfe"
REGISTER_NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
    "ds es fs gs"
)

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTER_NAMES.split()]


def ptrace(request: int, tid: int, address: int = 0, data: object = None) -> None:
    """Call ptrace; raises OSError."""
    if libc.ptrace(request, tid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace {request:#x} on {tid}: {os.strerror(code)}")


def seize(tid: int) -> None:
    """Stop this one thread, sending no signal, and wait until it stands."""
    ptrace(PTRACE_SEIZE, tid)
    ptrace(PTRACE_INTERRUPT, tid)
    os.waitpid(tid, WALL)


def registers(tid: int) -> Registers:
    """Return the registers of a stopped thread."""
    held = Registers()
    ptrace(PTRACE_GETREGS, tid, 0, ctypes.byref(held))
    return held


def entry_point(pid: int) -> int:
    """Return where the program's ELF entry point is in memory."""
    running = Path(f"/proc/{pid}/exe")
    with running.open("rb") as program:
        header = program.read(64)
    if header[:4] != b"\x7fELF":
        raise OSError("not an ELF program")
    kind: int = struct.unpack_from("<H", header, 16)[0]
    entry: int = struct.unpack_from("<Q", header, 24)[0]
    if kind == 2:  # ET_EXEC: an absolute address
        return entry
    program_file = running.stat().st_ino
    with Path(f"/proc/{pid}/maps").open(encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.split()
            if int(fields[4]) == program_file and int(fields[2], 16) == 0:
                return int(fields[0].split("-")[0], 16) + entry
    raise OSError("the program is not mapped")


def gone(tid: int) -> bool:
    """Collect the thread's death, so that its real parent gets to see it; say whether it died."""
    try:
        seen, status = os.waitpid(tid, WALL | os.WNOHANG)
    except ChildProcessError:
        return True
    if not seen:
        return False
    return os.WIFEXITED(status) or os.WIFSIGNALED(status)


def wait_for_release(finished: Callable[[], bool]) -> bool:
    """Wait until standard input closes; False when ``finished`` says there is nothing left to release."""
    while not finished():
        if select.select([0], [], [], RELEASE_POLL_S)[0] and not os.read(0, 1):
            return True
    return False


def freeze(tid: int) -> None:
    """Hold the thread."""
    seize(tid)
    print("held", flush=True)
    if wait_for_release(lambda: gone(tid)):
        ptrace(PTRACE_DETACH, tid)


def spin(pid: int, tid: int) -> None:
    """Send the thread round in circles; afterwards put it back where it was, even into its system call."""
    seize(tid)
    before = registers(tid)
    place = entry_point(pid)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(place)
        code = memory.read(2)
        memory.seek(place)
        memory.write(JUMP_TO_ITSELF)
    lost = Registers.from_buffer_copy(before)
    lost.rip = place
    lost.orig_rax = ctypes.c_ulonglong(-1).value  # else the kernel would step back to restart the system call
    ptrace(PTRACE_SETREGS, tid, 0, ctypes.byref(lost))
    ptrace(PTRACE_DETACH, tid)
    print("held", flush=True)
    if wait_for_release(lambda: not Path(f"/proc/{pid}/task/{tid}").exists()):
        seize(tid)
        ptrace(PTRACE_SETREGS, tid, 0, ctypes.byref(before))
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(place)
            memory.write(code)
        ptrace(PTRACE_DETACH, tid)


def main() -> int:
    """Put one fault in and take it out."""
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("freeze", "spin"):
        print(__doc__, file=sys.stderr)
        return 64
    pid = int(sys.argv[2])
    tid = int(sys.argv[3]) if len(sys.argv) == 4 else pid
    try:
        if sys.argv[1] == "freeze":
            freeze(tid)
        else:
            spin(pid, tid)
    except ProcessLookupError:
        return 0  # it died first; there is nothing left to undo
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
