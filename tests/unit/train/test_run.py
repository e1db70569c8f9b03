"""Signals ask a run to stop; however many arrive, it goes on to the end of its step."""

import subprocess
import sys

STORM = """
import signal
from mmrl.train.run import stop_on_signal

signal.signal(signal.SIGALRM, lambda number, frame: None)
signal.setitimer(signal.ITIMER_REAL, 3e-4, 3e-4)
for _ in range(1000):
    with stop_on_signal((signal.SIGALRM,)) as stop:
        while not stop.requested:
            pass
signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""


def test_a_storm_of_signals_raises_the_flag_and_blocks_nothing():
    result = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "done\n", result.stderr
