"""What is typed from the printed page, in a real bash: line by line the very words that were planned."""

from __future__ import annotations

import shlex
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.views.shell_lines import wrapped
from agent.views.shell_names import named

FOLDERS = ("/var/cache/holdfast-build/chat/work", "/opt/llama.cpp/releases/b1-0123456789ab+cuda12.9+sm89,90a", "/opt")
ODD = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=70)
PATHS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(("", "--file=", "--property=X=", "a,", "append:")),
    st.sampled_from(FOLDERS),
    st.sampled_from(("", "/", "/src", ".new", ":ro", "-old", "_x", "2", ",b", "=c")),
    st.sampled_from(("", "", "/bin/x y", "'", "$A")),
)
RUN = [f"--property=Option{number}=yes" for number in range(9)]
COMMANDS = st.lists(
    st.lists(st.one_of(PATHS, ODD, st.sampled_from(RUN)), min_size=1, max_size=6).map(
        lambda argv: [*argv[:2], *RUN, *argv[2:]] if len(argv) % 2 else argv
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(COMMANDS, st.integers(30, 110))
def test_bash_makes_the_planned_words_of_what_is_printed(commands: list[list[str]], columns: int) -> None:
    before, short = named([shlex.join(["p", *argv]) for argv in commands])
    lines = ["p() { printf '%s\\0' \"$@\"; printf '\\1'; }"]
    for each in (*before, *short):
        lines += wrapped(each, columns)
    done = subprocess.run(["bash", "--norc"], input="\n".join(lines), capture_output=True, text=True, check=True)
    said = [each.split("\0")[:-1] for each in done.stdout.split("\1")[:-1]]
    assert said == commands
    assert done.stderr == ""
