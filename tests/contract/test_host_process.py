"""The real /proc is understood."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from agent.host import process
from agent.host.real import real_host


def test_the_real_proc_is_understood(tmp_path: Path) -> None:
    host = real_host()
    odd = tmp_path / "a) (b c"
    odd.symlink_to(sys.executable)
    with subprocess.Popen([odd, "-c", "import time\ntime.sleep(60)", "--api-key", "x"]) as sleeper:
        try:
            time.sleep(0.5)
            (reading,) = process.threads(host, sleeper.pid, only_main=False)
            assert (reading.tid, reading.name, reading.state) == (sleeper.pid, "a) (b c", "S")
            assert reading.cpu_ns > 0
            assert reading.voluntary_switches > 0
            again = process.threads(host, sleeper.pid, only_main=True)[0]
            assert again.cpu_ns == reading.cpu_ns
            assert process.command_line(host, sleeper.pid)[-1] == "x"
            assert not process.core_dumping(host, sleeper.pid)
            assert 0 <= host.clock.now().boot_s - process.started_boot_s(host, sleeper.pid) < 10
            sleeper.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            assert process.threads(host, sleeper.pid, only_main=True)[0].state == "T"
            assert process.kernel_wait(host, sleeper.pid)[0].state == "T"
        finally:
            sleeper.kill()
