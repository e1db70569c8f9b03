"""python -m mmrl.rollout.vllm_watch PARENT COMMAND...: runs a command that does not outlive the process PARENT.

It leads a process group of its own. A parent that was killed cannot end it, and on Linux's parent-death signal the
children of the command would live on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

INTERVAL_S = 0.2


def watch(parent: int, command: Sequence[str]) -> int:
    """The command's exit code."""
    # The command gets the group's signal too and ends in order; a handler is not inherited, as ignoring would be.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command)
    while child.poll() is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        time.sleep(INTERVAL_S)
    return child.returncode


if __name__ == "__main__":
    sys.exit(watch(int(sys.argv[1]), sys.argv[2:]))
