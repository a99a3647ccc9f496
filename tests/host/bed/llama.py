"""A systemd unit that runs the real llama-server in a host.

What makes it slow, measured with the big model on two cores of a cloud machine: see ``docs`` in each parameter of
``llama_unit`` and SLOW below.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from bed.client import Client
from bed.errors import BedError
from bed.faults import has_cpu_controller, prepare_throttle, throttle
from bed.host import BootedHost


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
