"""Rollouts of the next step, written while the update of this one runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent import futures
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from mmrl.data.sampler import Sampler
from mmrl.protocols import PolicyEngine
from mmrl.types import Group


@runtime_checkable
class HoldingEngine(PolicyEngine, Protocol):
    """An engine with weights of its own, which it can keep while the trainer's change."""

    def hold(self) -> None:
        """Take the newest weights now, and no others until `let_go`: the trainer may go on while episodes are open."""
        ...

    def let_go(self) -> None:
        """The rollouts have ended; episodes that were cut off are released."""
        ...


class Rollouts:
    """The rollouts of one batch, in flight: a thread of their own plays them in its event loop.

    Args:
        play: gives what plays them all and returns their groups.
    """

    def __init__(self, engine: HoldingEngine, play: Callable[[], Coroutine[Any, Any, list[Group]]]) -> None:
        self.engine = engine
        engine.hold()  # before the thread starts: no update changes tensors that are being read
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        thread = futures.ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._groups = thread.submit(self._run, play)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return when nothing is in flight any more; the engine takes new weights again."""
        futures.wait([self._groups])
        self.engine.let_go()

    def groups(self) -> list[Group]:
        """What was played, when it is finished. Raises what went wrong."""
        self.wait()
        return self._groups.result()

    def cancel(self) -> None:
        """End what is in flight, unfinished."""
        with suppress(RuntimeError):  # the loop is closed: all is finished
            self._loop.call_soon_threadsafe(self._cancel_tasks)
        self.wait()

    def _run(self, play: Callable[[], Coroutine[Any, Any, list[Group]]]) -> list[Group]:
        with self._runner:
            return self._runner.run(play())

    def _cancel_tasks(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


class Pipeline:
    """The batches of a stage, each begun before the update of the step before its own.

    Args:
        begin: draws the rows of a step and begins its rollouts.
    """

    def __init__(self, begin: Callable[[int], Rollouts], sampler: Sampler, steps: int) -> None:
        self.begin, self.sampler, self.steps = begin, sampler, steps
        self._next: Rollouts | None = None
        self._next_at = 0
        """Where the sampler stood before the next step's rows were drawn."""

    @property
    def position(self) -> int:
        """Of the sampler, at the first row that no step has used."""
        return self.sampler.position if self._next is None else self._next_at

    def groups(self, number: int, on_group: Callable[[Group], None]) -> list[Group]:
        """Of step `number`, in order; those of the step behind it are begun. Raises what went wrong with them."""
        found = (self._next or self.begin(number)).groups()
        self._next = None
        for group in found:
            on_group(group)
        if number + 1 < self.steps:
            at = self.sampler.position
            self._next, self._next_at = self.begin(number + 1), at
        return found
