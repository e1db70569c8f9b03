"""A function in its own process: killed when it hangs, never left behind."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.adapt.worker import CallError, CallTimeoutError, Worker, plain

FUNCTIONS = """
import asyncio, os, signal, subprocess, sys, threading, time
from pathlib import Path

def echo(*arguments, **named):
    return [list(arguments), named]

def pid():
    return os.getpid()

def on_main_thread():
    signal.alarm(0)
    return threading.current_thread() is threading.main_thread()

def sleep(seconds, note=None):
    if note:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(note).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(seconds)

def later(value):
    async def wait():
        await asyncio.sleep(0)
        return value
    return wait()

def big():
    return ["x" * 300] * 60_000

class Counter:
    def __init__(self, start):
        self.count = start

    def __call__(self):
        self.count += 1
        return self.count

class Broken:
    def __init__(self):
        raise OSError("no such model")
"""


@pytest.fixture
def worker(tmp_path):
    """worker(name, timeout_s=..., fields=...) is a Worker of that function; all are stopped."""
    file = tmp_path / "functions.py"
    file.write_text(FUNCTIONS)
    made = []

    def make(name, timeout_s=20.0, fields=None):
        made.append(Worker(f"{file}:{name}", timeout_s=timeout_s, fields=fields))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def call(one, *arguments, **named):
    return asyncio.run(one.call(*arguments, **named))


def gone(pid):
    """Whether a process has ended (a zombie, which nobody has waited for, has)."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_arguments_and_results_go_through(worker):
    assert call(worker("echo"), 1, "ü\ud800", None, x={"a": [1.5, True]}) == [
        [1, "ü\ud800", None],
        {"x": {"a": [1.5, True]}},
    ]


def test_a_process_serves_many_calls_and_event_loops(worker):
    one = worker("pid")
    assert call(one) == call(one) != os.getpid()


def test_calls_at_once_wait_for_one_another_outside_their_time_limit(worker):
    one = worker("sleep", timeout_s=3.0)

    async def all_of_them():
        return await asyncio.gather(*(one.call(0.5) for _ in range(8)))

    assert asyncio.run(all_of_them()) == [None] * 8


def test_a_function_runs_on_the_main_thread_of_its_process(worker):
    assert call(worker("on_main_thread")) is True


def test_a_class_is_made_once_and_called(worker):
    one = worker("Counter", fields={"start": 5})
    assert [call(one), call(one)] == [6, 7]


def test_a_function_that_returns_a_coroutine_is_awaited(worker):
    assert call(worker("later"), 3) == 3


def test_a_call_that_takes_too_long_is_killed_with_what_it_started(worker, tmp_path):
    one = worker("sleep", timeout_s=2.0)
    note = tmp_path / "pids"
    with pytest.raises(CallTimeoutError, match="^took longer than 2 s$"):
        call(one, 60, str(note))
    pids = note.read_text().split()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert call(one, 0) is None


def test_stopping_and_forgetting_end_the_process(worker, tmp_path):
    one = worker("pid")
    first = call(one)
    one.stop()
    assert gone(first)
    second = call(one)
    assert second != first
    other = Worker(f"{tmp_path}/functions.py:pid", timeout_s=20)
    third = call(other)
    del other
    assert gone(third)


def test_nothing_is_left_when_the_program_ends(worker, tmp_path):
    worker("pid")
    code = f"""
import asyncio
from mmrl.adapt.worker import Worker
print(asyncio.run(Worker("{tmp_path}/functions.py:pid", timeout_s=20).call()), flush=True)
one = Worker("{tmp_path}/functions.py:pid", timeout_s=20)
print(asyncio.run(one.call()), flush=True)
"""
    pids = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_an_idle_process_ends_when_the_program_is_killed(worker, tmp_path):
    worker("pid")
    code = f"""
import asyncio, os, signal
from mmrl.adapt.worker import Worker
one = Worker("{tmp_path}/functions.py:pid", timeout_s=20)
print(asyncio.run(one.call()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    pid = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    assert pid.isdigit()
    assert gone(pid)


def test_what_cannot_be_loaded_says_so_at_every_call(worker):
    one = worker("Broken")
    for _ in range(2):
        with pytest.raises(CallError, match="^cannot be loaded in its own process: OSError: no such model$"):
            call(one)


def test_a_result_of_many_megabytes_is_refused(worker):
    one = worker("big")
    for _ in range(2):
        with pytest.raises(CallError, match="^its result has more than 10000000 bytes$"):
            call(one)


def test_what_cannot_be_copied_is_refused_and_costs_no_process(worker):
    one = worker("echo")
    with pytest.raises(CallError, match="^its arguments cannot be copied"):
        call(one, threading.Lock())
    assert one.process is None


def test_results_become_plain():
    assert plain({"a": np.float32(0.5), 1: np.arange(3), "t": torch.tensor([1.0, 2.0])}) == {
        "a": 0.5,
        "1": [0, 1, 2],
        "t": [1.0, 2.0],
    }
    assert plain(torch.tensor(2)) == 2
    assert plain((np.bool_(True), None, "x" * 1000)) == [True, None, "x" * 300]
    assert plain([object(), 10**400, 1j]) == ["a object", "an int that is too large for a float", "a complex"]


def test_a_call_that_is_cancelled_is_ended_and_the_next_one_works(worker, tmp_path):
    one, note = worker("sleep", timeout_s=300.0), tmp_path / "note"

    async def cancel():
        task = asyncio.create_task(one.call(200, str(note)))
        while not (note.exists() and len(note.read_text().split()) == 2):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    assert call(one, 0) is None
    assert all(gone(int(pid)) for pid in note.read_text().split())
