"""A systemd unit that runs the real llama-server in a host, as slow as a test wants it.

Slow without a fault, measured with the big model, one thread, two cores of a cloud machine (all in proportion to the
CPU given, so a test should wait for the state, never count on the seconds):

=====================================================  ==========================================================
tiny model, started to first token                     0.2 s; a token takes 0.1 ms
big model, started to first token                      2.1 s (1.4 s of CPU); a token takes 28 ms
big model with cpu_quota=5 / 1 / 0.5                   loads in 9 s / 45 s / 75 s, answering 503 then
one step: long_prompt(2000), and BIG_STEP arguments    18 s; 90 s at throttle(20); 153 s at throttle(12)
long_prompt(128 / 512), the same arguments             1.0 s / 3.9 s
=====================================================  ==========================================================

During such a step the main thread moves all the time (its CPU time grows); /slots and /metrics answer 200 in
milliseconds and none of their counters moves; /health answers in 5 ms, under throttle() at times in 0.9 s.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from bed.client import Client
from bed.errors import BedError
from bed.faults import has_cpu_controller, prepare_throttle, throttle
from bed.host import BootedHost

# A prompt of up to 2048 tokens is then one single step: nothing is reported before it ends.
BIG_STEP = ("--batch-size", "2048", "--ubatch-size", "2048")


@dataclass(frozen=True, slots=True)
class LlamaUnit:
    """A running engine and ways to reach it."""

    host: BootedHost
    name: str
    port: int

    @property
    def unit(self) -> str:
        """Its unit's full name."""
        return f"{self.name}.service"

    @property
    def pid(self) -> int:
        """Its main process now, numbered as in the host; that is also its inference thread."""
        return self.host.main_pid(self.unit)

    @property
    def client(self) -> Client:
        """A client of its port."""
        return Client(self.host, self.port)

    def generates(self, timeout: float = 3) -> bool:
        """Whether a one-token completion is answered in time."""
        return self.client.completion("hello", 1, timeout).ok

    def wait_until_generates(self, timeout: float = 60) -> None:
        """Wait for a one-token completion. Raises BedError with the end of the unit's journal."""
        try:
            self.host.wait_for(self.generates, timeout, f"{self.name} to generate", every=0.2)
        except BedError as error:
            raise BedError(f"{error}\n{self.host.journal(self.unit)[-2000:]}") from error

    def throttle(self, percent: float | None) -> None:
        """Limit it to so many percent of one core, or lift the limit with None."""
        throttle(self.host, self.unit, percent)


def llama_unit(
    host: BootedHost,
    name: str = "llama-server",
    *,
    port: int = 8080,
    model: str = "tiny",
    restart: str | None = None,
    extra_args: Sequence[str] = (),
    cpu_quota: float | None = None,
    threads: int = 1,
    parallel: int = 2,
    context: int = 4096,
    user: str | None = None,
    program: str = "/opt/llama/llama-server",
    unit_lines: Sequence[str] = (),
    service_lines: Sequence[str] = (),
    enable: bool = True,
    wait: bool = True,
) -> LlamaUnit:
    """Write, enable and start a unit with a real llama-server, and wait for its first token (unless ``wait=False``).

    ``model`` is tiny, big or a path; ``restart`` the unit's Restart=; ``cpu_quota`` percent of one core from its
    first instruction on, so that loading is slow, too (lift it with ``throttle(None)``); ``unit_lines`` and
    ``service_lines`` are added to those sections. One thread by default, so that the main thread does all
    computing and no worker burns a core waiting for a frozen one.
    """  # fmt: skip
    path = model if "/" in model else f"/opt/models/{model}.gguf"
    argv = [
        program, "--model", path, "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads),
        "--threads-batch", str(threads), "--parallel", str(parallel), "--ctx-size", str(context), "--metrics",
        "--slots", *extra_args,
    ]  # fmt: skip
    service = [f"ExecStart={shlex.join(argv)}"]
    unit = f"{name}.service"
    if cpu_quota is not None:
        if has_cpu_controller(host):
            service += [f"CPUQuota={cpu_quota:g}%", "CPUQuotaPeriodSec=1s"]
        else:
            group = prepare_throttle(host, unit, cpu_quota)
            enter = f"echo $$$$ >{group}/cgroup.procs; exec {shlex.join(argv)}"
            service = [f"ExecStart=/bin/sh -c {shlex.quote(enter)}"]
    if restart is not None:
        service.append(f"Restart={restart}")
    if user is not None:
        service.append(f"User={user}")
    lines = [
        "[Unit]", "Description=llama-server under test", *unit_lines, "[Service]", *service, *service_lines,
        "[Install]", "WantedBy=multi-user.target", "",
    ]  # fmt: skip
    host.write(f"/etc/systemd/system/{unit}", "\n".join(lines))
    host.run("systemctl", "daemon-reload")
    if enable:
        host.run("systemctl", "enable", unit)
    host.run("systemctl", "start", unit)
    running = LlamaUnit(host, name, port)
    if wait:
        running.wait_until_generates()
    return running
