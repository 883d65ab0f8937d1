"""Drives a program on a terminal of its own. Usage: sql_shell.py PROGRAM ARGS... < STEPS

STEPS is JSON: a list of {"send": text} and {"expect": text}. What is expected is waited for, up to a minute, in what
the terminal shows after the last thing that was expected; colours and cursor movements are left out. Prints all that
was shown. Ends with 1 when something did not come, else with the program's exit code.
"""

import json
import os
import pty
import re
import select
import sys
import time

PATIENCE_SECONDS = 60
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


def main():
    steps = json.load(sys.stdin)
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(sys.argv[1], sys.argv[1:])
    shown = b""
    looked_at = 0

    def read(deadline):
        """More of what is shown; False at the end."""
        nonlocal shown
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux: the program has closed its side.
            piece = b""
        shown += piece
        return bool(piece)

    for step in steps:
        if "send" in step:
            os.write(terminal, step["send"].encode())
            continue
        wanted = step["expect"].encode()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            plain = CONTROL.sub(b"", shown)
            at = plain.find(wanted, looked_at)
            if at >= 0:
                looked_at = at + len(wanted)
                break
            if not read(deadline):
                print(plain.decode(errors="replace"))
                print("did not come:", step["expect"])
                os.close(terminal)
                sys.exit(1)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while read(deadline):
        pass
    print(CONTROL.sub(b"", shown).decode(errors="replace"))
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


main()
