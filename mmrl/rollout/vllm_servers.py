"""vLLM in servers of its own: requests go to vLLM's own token endpoint, weights through a folder that servers see.

A server that dies is started again with the latest weights, and what it was writing is asked again with the same seeds:
no rollout is lost. Media features never travel in a request; servers read them by name (mmrl/cache/shared.py).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmrl.config import ServersSection
from mmrl.errors import ConfigError, MmrlError
from mmrl.models.load import SHARD_BYTES
from mmrl.rollout.vllm_process import ServerProcess, devices_of
from mmrl.rollout.vllm_prompt import Call, Item, Written, by_modality, kwargs_item, sampling
from mmrl.rollout.vllm_server import Server, ServerDownError, Weights

ATTEMPTS = 10
"""To have one request answered."""
PAUSE_S = 1.0
"""Before a request is asked again: a server that ends answers for a moment yet."""


class Servers:
    """Implements Writer.

    Args:
        arguments: of vLLM's engine, for servers that are started here.
        folder: that every server sees.
        logs: folder of the logs of servers that are started here.
    """

    def __init__(self, options: ServersSection, arguments: Mapping[str, Any], folder: Path, logs: Path) -> None:
        _import_vllm()
        self.options, self.folder = options, folder
        self.bytes_sent = 0
        """Of requests for a turn."""
        self.version = 0
        self._run = secrets.token_hex(4)
        """Names our weights: another trainer has a third version too."""
        self._weights: Weights | None = None
        self._numbers = itertools.count()
        self._places: dict[str, int] = {}
        """Number of each group, in order of their first turns."""
        self._ranks = 1 if options.urls else int(arguments.get("data_parallel_size", 1))
        """Engines of a server, each with a prefix cache of its own."""
        self.servers = _elsewhere(options) if options.urls else _ours(options, arguments, logs)
        try:
            self._all_take(None)
        except BaseException:
            self.close()
            raise

    async def generate(self, call: Call, group: str) -> Written:
        # A group's keys are in one place, and places have equally many groups.
        turn, number = divmod(self._places.setdefault(group, len(self._places)), len(self.servers))
        server, rank = self.servers[number], turn % self._ranks if self._ranks > 1 else None
        body = request_body(call)
        problem = ""
        for _ in range(ATTEMPTS):
            rounds, hung = server.rounds, False
            self.bytes_sent += len(body)
            try:
                (choice,) = (await server.generate(body, rank))["choices"]
                problem = self._problem(choice)
                if not problem:
                    server.restarts = 0
                    return self._written(choice)
            except ServerDownError as error:
                problem, hung = str(error), error.hung
            await asyncio.sleep(PAUSE_S)
            await asyncio.wrap_future(server.recover(rounds, hung=hung))
        raise MmrlError(f"{server}: a request was not answered in {ATTEMPTS} attempts; the last: {problem}")

    def _problem(self, choice: Mapping[str, Any]) -> str:
        """Why a completion is not accepted."""
        wanted = self._weights.version if self._weights else None
        found = {span["version"] for span in choice["weight_versions"] or ()}
        if found != {wanted}:
            return f"written with weights {sorted(found)} in place of {wanted}"
        reason = choice["finish_reason"]
        return "" if reason in ("stop", "length") else f"it finished by {reason!r}"

    def _written(self, choice: Mapping[str, Any]) -> Written:
        return Written(
            ids=tuple(choice["token_ids"]),
            logprobs=tuple(step["logprob"] for step in choice["logprobs"]["content"]),
            version=self.version,
            stopped=choice["finish_reason"] == "stop",
        )

    def take_weights(self, version: int, weights: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> None:
        """Every server takes them at once. They stay in the folder for servers that are started again."""
        before = self._weights
        name = f"{self._run}.{next(self._numbers)}"
        self._weights = Weights(name, self.folder / f"weights-{name}")
        write_weights(weights(), self._weights.folder)
        self._all_take(self._weights)
        self.version = version
        if before is not None:
            shutil.rmtree(before.folder)

    def _all_take(self, weights: Weights | None) -> None:
        for taken in [server.take(weights) for server in self.servers]:
            taken.result()

    def sleep(self) -> None: ...  # servers have devices, or a part of one, for themselves

    def wake(self) -> None: ...

    def close(self) -> None:
        for server in self.servers:
            server.close()
        if self._weights is not None:
            shutil.rmtree(self._weights.folder, ignore_errors=True)


def _ours(options: ServersSection, arguments: Mapping[str, Any], logs: Path) -> list[Server]:
    token = secrets.token_hex(16)  # other users of this machine reach its ports
    servers = []
    for number in range(options.count or 0):
        devices = devices_of(number, arguments, options.first_device)
        start = partial(ServerProcess, arguments, token, logs / f"{number}.log", devices)
        servers.append(Server(f"server {number}", start, token, options))
    return servers


def _elsewhere(options: ServersSection) -> list[Server]:
    token = os.environ.get(options.token_env, "").strip()
    return [Server(f"server {number}", url.rstrip("/"), token, options) for number, url in enumerate(options.urls)]


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


def write_weights(weights: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Safetensors that servers of other users may read."""
    from huggingface_hub import save_torch_state_dict

    try:
        folder.mkdir(parents=True)
        save_torch_state_dict(dict(weights), folder, max_shard_size=SHARD_BYTES)
    except (OSError, SafetensorError) as error:
        raise MmrlError(
            f"{folder}: weights cannot be written ({error}); rollout.servers.folder names another"
        ) from None
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


def _import_vllm() -> None:
    try:
        import vllm.entrypoints.scale_out.token_in_token_out.mm_serde  # noqa: F401
    except ImportError:
        raise ConfigError("rollout.engine: vllm is not installed; pip install 'mmrl[vllm]', or use hf") from None
