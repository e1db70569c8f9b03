"""A process for each framework, which does a step when it is told to: they take turns, and memory is told apart."""

from __future__ import annotations

import io
import multiprocessing
import time
import traceback
from contextlib import redirect_stdout
from functools import cached_property
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Literal

from tests.bench.task import Setup

Ask = Literal["step", "count"]
"""Take a step's time and memory, or count its operations."""


class Turns:
    """The side of the process that measures itself."""

    def __init__(self, connection: Connection, setup: Setup) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        self.connection, self.setup = connection, setup

    def ready(self, model: Any, *, outside: Literal["rollout", "update"]) -> Any:
        """Everything is loaded; returns the model's phases, for methods to be wrapped."""
        from tests.bench.flops import ideal_flops
        from tests.bench.memory import DeviceMemory, HostMemory
        from tests.bench.phases import Phases

        self.model, self.device = model, model.device.type
        self.phases = Phases(model, outside=outside)
        self.memory = DeviceMemory() if self.device == "cuda" else HostMemory()
        ideal = ideal_flops(model, self.setup.case, freeze_vision=self.setup.freeze_vision)
        self.memory.reset()
        self.loaded = self.memory.now()
        self.connection.send({"ideal_flops": ideal, "loaded_bytes": self.loaded})
        return self.phases

    def wait(self) -> bool:
        """Until a step is asked for; False at the end."""
        from tests.bench.flops import clock, flop_counter

        self.asked = self.connection.recv()
        if self.asked is None:
            return False
        self.memory.reset()
        if self.asked == "count":
            self.counter = flop_counter().__enter__()
            self.phases.start(lambda: float(self.counter.get_total_flops()))
        else:
            self.phases.start(lambda: clock(self.device))
        self.cpu = time.process_time()
        return True

    def done(self, **facts: Any) -> None:
        """The step is over."""
        from tests.bench.flops import peak_flops

        found = self.phases.end() | {"cpu": time.process_time() - self.cpu, **facts}
        found["peak_bytes"] = self.memory.peak() - self.loaded
        if self.asked == "count":
            self.counter.__exit__(None, None, None)
            found["peak_flops"] = peak_flops(self.device, self.model.dtype)
        self.connection.send(found)


class Side:
    """The parent's hand on such a process.

    Args:
        module: its `serve` is called in the process, with Turns.
    """

    def __init__(self, module: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_main, args=(module, theirs, setup), daemon=True)
        self.process.start()
        theirs.close()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Of the loaded model, once it is."""
        return self._receive()

    def step(self, ask: Ask = "step") -> dict[str, Any]:
        assert self.facts
        self.connection.send(ask)
        return self._receive()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()

    def _receive(self) -> dict[str, Any]:
        try:
            found = self.connection.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(f"a measuring process ended with {self.process.exitcode} (-9: out of memory)") from None
        if isinstance(found, str):
            raise SystemExit(found)
        return found


def _main(module: str, connection: Connection, setup: Setup) -> None:
    try:
        with redirect_stdout(io.StringIO()):  # progress of many kinds
            import_module(module).serve(Turns(connection, setup))
    except EOFError:  # the parent has ended
        pass
    except Exception:
        connection.send(traceback.format_exc())
