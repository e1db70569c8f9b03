"""vLLM in the trainer's process: a thread steps the engine while there is something to write.

Weights are handed over as tensors, on a GPU too: nothing is copied between processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mmrl.errors import ConfigError
from mmrl.protocols import Completion
from mmrl.rollout.vllm_arguments import SPLITS
from mmrl.rollout.vllm_prompt import Call, engine_input, sampling
from mmrl.rollout.vllm_worker import Weights

Waiting = tuple[Call, asyncio.AbstractEventLoop, asyncio.Future[Completion]]


class InProcess:
    """Implements Backend."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.llm = build_llm(arguments)
        self.version = 0
        self._numbers = itertools.count()
        self._inbox: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._waiting: dict[str, Waiting] = {}
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._thread.start()

    async def generate(self, call: Call) -> Completion:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()
        self._inbox.put((call, loop, future))
        return await future

    def take_weights(self, version: int, weights: Callable[[], Weights]) -> None:
        self.llm.collective_rpc("load_policy", args=(weights(),))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps keys of other weights: something is still being written")
        self.llm.llm_engine.reset_encoder_cache()
        self.version = version

    def sleep(self) -> None:
        """Leave the GPU's memory to the trainer: the weights come back with the next update."""
        if self.llm.llm_engine.model_config.enable_sleep_mode:
            self.llm.sleep(level=2)

    def wake(self) -> None:
        if self.llm.llm_engine.model_config.enable_sleep_mode:
            self.llm.wake_up()

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()
        self.llm.llm_engine.engine_core.shutdown()

    def _run(self) -> None:
        while self._receive(block=not self._waiting):
            try:
                self._step()
            except Exception as error:  # costs all that was being written
                self._fail(error)

    def _receive(self, *, block: bool) -> bool:
        """Take in what was asked; False at the end."""
        while block or not self._inbox.empty():
            waiting = self._inbox.get()
            if waiting is None:
                return False
            self._add(waiting)
            block = False
        return True

    def _add(self, waiting: Waiting) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        call, name = waiting[0], str(next(self._numbers))
        try:
            parameters = SamplingParams(**sampling(call), output_kind=RequestOutputKind.FINAL_ONLY)
            self.llm.llm_engine.add_request(name, engine_input(call), parameters, priority=call.priority)
        except Exception as error:  # a request that cannot be met costs its episode
            _settle(waiting, error)
        else:
            self._waiting[name] = waiting

    def _step(self) -> None:
        for output in self.llm.llm_engine.step():
            if output.finished and output.request_id in self._waiting:
                waiting = self._waiting.pop(output.request_id)
                try:
                    outcome: Completion | Exception = self._completion(waiting[0], output)
                except Exception as error:
                    outcome = error
                _settle(waiting, outcome)

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(Exception):  # of an engine that is lost
            self.llm.llm_engine.abort_request(list(self._waiting))
        for waiting in self._waiting.values():
            _settle(waiting, error)
        self._waiting.clear()

    def _completion(self, call: Call, output: Any) -> Completion:
        (found,) = output.outputs
        if len(output.prompt_token_ids) != len(call.ids):
            raise RuntimeError(f"vLLM made {len(output.prompt_token_ids)} tokens of a prompt of {len(call.ids)}")
        if found.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a turn by {found.finish_reason!r}")
        ids = tuple(found.token_ids)
        return Completion(
            ids=ids,
            logprobs=tuple(step[i].logprob for i, step in zip(ids, found.logprobs, strict=True)),
            version=self.version,
            stopped=found.finish_reason == "stop",
        )


def _settle(waiting: Waiting, outcome: Completion | Exception) -> None:
    _, loop, future = waiting

    def settle() -> None:
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    with contextlib.suppress(RuntimeError):  # whoever asked has stopped
        loop.call_soon_threadsafe(settle)


def build_llm(arguments: Mapping[str, Any]) -> Any:
    """ConfigError where it is to be split over several devices: weights are handed to one worker."""
    for key in SPLITS:
        if int(arguments.get(key, 1)) > 1:
            raise ConfigError(f"rollout.vllm.{key}: is 1 in the trainer's process; set rollout.servers: {{count: 1}}")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM
    from vllm.distributed.ec_transfer import has_ec_transfer

    if has_ec_transfer():
        raise RuntimeError("a process holds one vLLM at a time: close the other engine first")
    try:
        return LLM(**arguments)
    except ValueError as error:  # its check of arguments
        words = " ".join(str(error).split())
        raise ConfigError(f"rollout.vllm: vLLM does not take these arguments: {words[:500]}") from None
