"""vLLM in servers of its own: requests go to vLLM's own token endpoint, weights through a folder that servers see.

A server that dies is started again with the latest weights, and what it was writing is asked again with the same seeds:
no rollout is lost. Media features never travel in a request; servers read them by name (mmrl/cache/shared.py).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import secrets
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from safetensors import SafetensorError

from mmrl.cache.shared import SharedFeatures
from mmrl.config import ServersSection
from mmrl.errors import MmrlError
from mmrl.models.load import write_weights
from mmrl.protocols import Completion
from mmrl.rollout.vllm_client import ServerDownError
from mmrl.rollout.vllm_process import ServerProcess, devices_of
from mmrl.rollout.vllm_prompt import Call, Item, by_modality, kwargs_item, sampling
from mmrl.rollout.vllm_server import Server, WeightFiles
from mmrl.rollout.vllm_worker import Weights

ATTEMPTS = 10
"""To have one request answered."""
PAUSE_S = 1.0
"""Before a request is asked again: a server that ends answers for a moment yet."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
UNLIMITED = 4096
"""Requests at a time where a process may open any number of files."""


class Servers:
    """Implements Backend.

    Args:
        arguments: of vLLM's engine: servers that are started here get them, others are checked.
        shared: a folder that every server sees. The weights stay in it until the next ones, or until it is closed.
        logs: folder of the logs of servers that are started here.
        tell: is given a line for each restart.
    """

    def __init__(
        self,
        options: ServersSection,
        arguments: Mapping[str, Any],
        shared: SharedFeatures,
        logs: Path,
        *,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.shared = shared
        self.bytes_sent = 0
        """Of requests for a turn."""
        self.version = 0
        self._weights: WeightFiles | None = None
        self._numbers = itertools.count()
        self._places: dict[str, int] = {}
        """Number of each group, in order of their first turns."""
        self._ranks = 1 if options.urls else int(arguments.get("data_parallel_size", 1))
        """Engines of a server, each with a prefix cache of its own."""
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        """Of requests that are asked at a time."""
        if options.urls:
            self.servers = _elsewhere(options, arguments, tell)
        else:
            self.servers = _ours(options, without_weights(arguments, shared), logs, tell)
        try:
            self._all_take(None)
        except BaseException:
            self.close()
            raise

    async def generate(self, call: Call) -> Completion:
        # A group's keys are in one place, and places have equally many groups.
        turn, number = divmod(self._places.setdefault(call.request.group, len(self._places)), len(self.servers))
        server, rank = self.servers[number], turn % self._ranks if self._ranks > 1 else None
        body = request_body(call)
        for _ in range(ATTEMPTS):
            rounds = server.rounds
            try:
                choice = await self._ask(server, body, rank)
            except ServerDownError as error:
                problem = error
            else:
                server.restarts = 0
                return self._completion(choice)
            await asyncio.sleep(PAUSE_S)
            await asyncio.wrap_future(server.recover(rounds, problem))
        raise MmrlError(f"{server}: a request was not answered in {ATTEMPTS} attempts; the last: {problem}")

    async def _ask(self, server: Server, body: bytes, rank: int | None) -> Mapping[str, Any]:
        """What was written; ServerDownError where it is not accepted."""
        async with self._slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(max_in_flight())):
            self.bytes_sent += len(body)
            answer = await server.client.generate(body, rank)
        choice: Mapping[str, Any]
        (choice,) = answer["choices"]
        problem = self._problem(choice)
        if problem:
            raise ServerDownError(problem)
        return choice

    def _problem(self, choice: Mapping[str, Any]) -> str:
        """Why a completion is not accepted."""
        wanted = self._weights.version if self._weights else None
        found = {span["version"] for span in choice["weight_versions"] or ()}
        if found != {wanted}:
            return f"written with weights {sorted(found)} in place of {wanted}"
        reason = choice["finish_reason"]
        return "" if reason in ("stop", "length") else f"it finished by {reason!r}"

    def _completion(self, choice: Mapping[str, Any]) -> Completion:
        return Completion(
            ids=tuple(choice["token_ids"]),
            logprobs=tuple(step["logprob"] for step in choice["logprobs"]["content"]),
            version=self.version,
            stopped=choice["finish_reason"] == "stop",
        )

    def take_weights(self, version: int, weights: Callable[[], Weights]) -> None:
        """Every server takes them at once. They stay in the folder for servers that are started again."""
        before, number = self._weights, next(self._numbers)
        run = self.shared.run  # another trainer has a third version too
        self._weights = WeightFiles(f"{run}.{number}", self.shared.folder / f"{run}.weights-{number}")
        try:
            self._write(weights())
            self._all_take(self._weights)
        finally:
            if before is not None:
                shutil.rmtree(before.folder, ignore_errors=True)
        self.version = version

    def _write(self, weights: Weights) -> None:
        assert self._weights is not None
        try:
            write_weights(weights, self._weights.folder)
        except (OSError, SafetensorError) as error:
            raise MmrlError(
                f"{self._weights.folder}: weights cannot be written ({error}); rollout.folder names another"
            ) from None

    def _all_take(self, weights: WeightFiles | None) -> None:
        """Return when all have them, or the first has failed."""
        for taken in wait([server.take(weights) for server in self.servers], return_when=FIRST_EXCEPTION).done:
            taken.result()

    def sleep(self) -> None: ...  # servers have devices, or a part of one, for themselves

    def wake(self) -> None: ...

    def close(self) -> None:
        with ThreadPoolExecutor(len(self.servers)) as threads:
            list(threads.map(Server.close, self.servers))


def _ours(
    options: ServersSection, arguments: Mapping[str, Any], logs: Path, tell: Callable[[str], None]
) -> list[Server]:
    token = secrets.token_hex(16)  # other users of this machine reach its ports
    servers = []
    for number in range(options.count or 0):
        devices = devices_of(number, arguments, options.first_device)
        start = partial(ServerProcess, arguments, token, logs / f"{number}.log", devices)
        servers.append(Server(f"server {number}", start, token, options, arguments, tell))
    return servers


def _elsewhere(options: ServersSection, arguments: Mapping[str, Any], tell: Callable[[str], None]) -> list[Server]:
    token = os.environ.get(options.token_env, "").strip()
    return [
        Server(f"server {number}", url.rstrip("/"), token, options, arguments, tell)
        for number, url in enumerate(options.urls)
    ]


def without_weights(arguments: Mapping[str, Any], shared: SharedFeatures) -> Mapping[str, Any]:
    """Arguments that start a server from a copy of the model's folder without its weights. The trainer hands over its
    own, and the folder may be gone when the server is started again: old checkpoints are removed."""
    model = Path(arguments["model"])
    if not model.is_dir():
        return arguments
    copy = shared.folder / f"{shared.run}.model"
    copy.mkdir()
    for file in model.iterdir():
        if file.is_file() and file.suffix not in WEIGHTS:
            shutil.copy(file, copy)
    return {**arguments, "model": str(copy), "load_format": "dummy"}


def max_in_flight() -> int:
    """Requests: each has a socket, and other things open files too."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if limit == resource.RLIM_INFINITY else max(1, limit // 2)


def request_body(call: Call) -> bytes:
    """A request of POST /inference/v1/generate (vllm.entrypoints.scale_out.token_in_token_out.protocol)."""
    request: dict[str, Any] = {
        "token_ids": call.ids,
        "sampling_params": sampling(call),
        "priority": call.priority,
    }
    if call.items:
        groups = by_modality(call.items)
        request["features"] = {
            "mm_hashes": {kind: [item.name for item in items] for kind, items in groups.items()},
            "mm_placeholders": {
                kind: [{"offset": item.start, "length": item.length} for item in items]
                for kind, items in groups.items()
            },
            "mm_metadata": {kind: [_metadata(item) for item in items] for kind, items in groups.items()},
        }
        # Says that features come through the connector; by their names, nothing else is needed.
        request["ec_transfer_params"] = {"source": "folder"}
    return json.dumps(request, separators=(",", ":")).encode()


def _metadata(item: Item) -> str:
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

    return str(encode_mm_kwargs_item(kwargs_item(item)))
