"""What `systemctl` and `journalctl` are in the demonstration: they hand their words to the stand-in for systemd.

Standard library only, and quick to start: the product asks often. The socket lies beside the program.
"""

import json
import pathlib
import socket
import sys

program = pathlib.Path(sys.argv[0]).absolute()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(str(program.with_name("manager.sock")))
    connection.sendall(json.dumps([program.name, *sys.argv[1:]]).encode() + b"\n")
    answer = b""
    while chunk := connection.recv(1 << 16):
        answer += chunk
said = json.loads(answer)
sys.stdout.write(said["out"])
sys.stderr.write(said["err"])
sys.exit(said["rc"])
