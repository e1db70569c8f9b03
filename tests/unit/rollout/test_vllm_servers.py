"""vLLM in a real server: what it writes, what it is sent, whom it obeys, and what is said of one that fails.

It is `mmrl serve-engine`; tests/e2e/test_vllm_kills.py has servers that a run starts, and their ends.
"""

import asyncio
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import families
import httpx2
import pytest
import torch
from pydantic import ValidationError
from vllm_play import ARGUMENTS, VISION, ask, assert_equal, change, open_engine, picture, play

from mmrl.cache.shared import SharedFeatures
from mmrl.config import RolloutSection, ServersSection
from mmrl.errors import ConfigError, MmrlError
from mmrl.rollout import vllm_client
from mmrl.rollout.vllm_client import Client
from mmrl.rollout.vllm_process import ServerProcess, devices_of, place, serve_command
from mmrl.rollout.vllm_serve import serve
from mmrl.rollout.vllm_server import Server
from mmrl.rollout.vllm_servers import Servers, max_in_flight
from mmrl.types import Message, Part, Segment, Source, StopReason, Trajectory

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
TOKEN = "secret"
FITS = {"max_model_len": 2112, "dtype": "float32"}


@pytest.fixture(scope="module", autouse=True)
def _fewer_processes():
    """The engine's worker is no process of its own: a server starts in two thirds of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


class Elsewhere:
    """`mmrl serve-engine`, as on another machine."""

    def __init__(self, root):
        self.folder, self.model, self.log = root / "shared", root / "qwen2_5_vl", root / "log"
        families.write("qwen2_5_vl", self.model)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "mmrl.cli", "serve-engine", self.model, "--folder", self.folder]
        command += ["--port", self.port, "--max-context", 2112, "--token-env", "MINE"]
        command += [part for key, value in ARGUMENTS.items() for part in ("--set", f"{key}={value}")]
        environment = os.environ | {"MINE": TOKEN}
        with self.log.open("ab") as log:
            arguments = [*map(str, command)]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.starts += 1

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def replace(self):
        self.kill()
        self.start()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    found = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    yield found
    found.kill()


@pytest.fixture(scope="module")
def opened(elsewhere):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMRL_ENGINE_TOKEN", TOKEN + "\n")
        options = {"servers": {"urls": [elsewhere.url + "/"]}, "folder": str(elsewhere.folder), "vllm": {}}
        checkpoint, engine = open_engine("qwen2_5_vl", elsewhere.model.parent, **options)
    yield checkpoint, engine
    engine.close()


def test_log_probs_equal_the_trainers_after_every_update(opened):
    checkpoint, engine = opened
    for step in range(4):
        for case in ("image", "turns"):
            assert_equal(checkpoint, play(engine, *VISION[case]), (step, case))
        change(checkpoint.model, step)
        engine.weights_changed(vision=True)
    assert [file.name for file in engine.shared.folder.glob("*weights-*")] == [f"{engine.shared.run}.weights-3"]


def test_a_medium_is_written_once_for_a_group_of_any_size(opened):
    _, engine = opened
    sent, written = {}, {}
    for siblings in (1, 8):
        before = engine.backend.bytes_sent, engine.shared.bytes_written
        play(engine, *VISION["image"], siblings=siblings)
        sent[siblings] = engine.backend.bytes_sent - before[0]
        written[siblings] = engine.shared.bytes_written - before[1]
    assert written[1] == written[8] > 0
    assert sent[8] == pytest.approx(8 * sent[1], rel=0.01)


def test_a_request_grows_with_a_picture_by_its_placeholders_only(opened):
    _, engine = opened
    sent = []
    for number, side in enumerate((2, 20)):
        before = engine.backend.bytes_sent
        play(engine, (picture(50 + number, side, side),), siblings=1)
        sent.append(engine.backend.bytes_sent - before)
    assert sent[1] - sent[0] <= 4 * (20 * 20 - 2 * 2) + 8  # ids of three digits, and numbers of more


def test_what_another_trainers_weights_write_is_not_accepted(opened, elsewhere, tmp_path, monkeypatch):
    """It takes the server over between two turns: the same version number, other weights."""
    checkpoint, engine = opened
    play(engine, *VISION["image"])
    server = engine.backend.servers[0]
    monkeypatch.setenv("OTHERS", TOKEN)
    options = ServersSection(urls=[elsewhere.url], token_env="OTHERS")
    other = Servers(options, FITS, SharedFeatures(tmp_path), tmp_path)
    other.take_weights(engine.version, lambda: ((name, torch.zeros_like(value)) for name, value in engine.weights()))
    rounds = server.rounds
    assert_equal(checkpoint, play(engine, *VISION["turns"]))
    assert server.rounds > rounds
    other.close()
    assert list(tmp_path.glob("*weights-*"))
    os.close(other.shared._lock)  # as if it had been killed
    left = SharedFeatures(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{left.run}.lock"]


@pytest.mark.usefixtures("opened")
def test_no_path_but_health_is_answered_without_the_token(elsewhere):
    right = {"Authorization": f"Bearer {TOKEN}"}
    with httpx2.Client(base_url=elsewhere.url, trust_env=False, timeout=10) as client:
        paths = client.get("/openapi.json", headers=right).json()["paths"]
        assert {"/collective_rpc", "/inference/v1/generate", "/update_weights", "/sleep", "/health"} <= set(paths)
        for path, methods in [
            *paths.items(),
            ("/metrics", {"get": 0}),
            ("/health/", {"get": 0}),
            ("/none", {"put": 0}),
        ]:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": right["Authorization"][:-1]}):
                for method in (*methods, "options"):
                    status = client.request(method, path, headers=headers).status_code
                    assert (status != 401) == (path == "/health"), (method, path)
        assert client.get("/weight_info", headers=right).status_code == 200


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_wrong_token_is_named(elsewhere, tmp_path, monkeypatch, token):
    monkeypatch.setenv("MINE", token)
    options = ServersSection(urls=[elsewhere.url], token_env="MINE")
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http://127.*\) refuses the token: MINE must hold [^\n]*$"):
        Servers(options, FITS, SharedFeatures(tmp_path), tmp_path)


def test_a_folder_that_a_server_does_not_see_is_named(opened, elsewhere, tmp_path):
    server = opened[1].backend.servers[0]
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http.*\): /collective_rpc answered 500"):
        server.client.ask("POST", "/collective_rpc", {"method": "load_policy_files", "args": [str(tmp_path)]})
    assert f"FileNotFoundError: {tmp_path} holds no weights" in elsewhere.log.read_text()


def test_a_server_that_does_not_start_is_told_in_a_line_with_its_log(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    told = r"^vLLM server 0 \(log: .*/servers/0.log\) ended with code \d+: [^\n]*many[^\n]*$"
    arguments = FITS | ARGUMENTS | {"model": str(tmp_path), "block_size": "many"}
    with pytest.raises(MmrlError, match=told) as caught:
        Servers(ServersSection(count=1), arguments, SharedFeatures(tmp_path / "shared"), tmp_path / "servers")
    assert Path(re.search(r"log: (.*?)\)", str(caught.value))[1]).is_file()


def test_a_server_that_is_not_there_is_waited_for_as_long_as_was_said(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    told, options = [], ServersSection(urls=["http://127.0.0.1:9"], start_timeout_s=1)
    begin = time.monotonic()
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http://127.0.0.1:9\) is not ready after 1 s"):
        Servers(options, FITS, SharedFeatures(tmp_path), tmp_path, tell=told.append)
    assert told == ["vLLM server 0 (http://127.0.0.1:9): no answer; waiting for it, up to 1 s"]
    assert 1 <= time.monotonic() - begin < 5


def test_a_server_elsewhere_that_starts_again_gets_the_weights_again(opened, elsewhere):
    """It is killed while it writes, and another one comes up in its place, with the first weights."""
    checkpoint, engine = opened
    change(checkpoint.model, 100)
    engine.weights_changed(vision=True)
    timer = threading.Timer(0.1, elsewhere.replace)
    timer.start()
    assert_equal(checkpoint, play(engine, *VISION["turns"], tokens=150))
    timer.join()
    assert elsewhere.starts == 2


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """(checkpoint, engine, lines that were told) of two servers. The folder of their model is gone, as that of a
    checkpoint that a run goes on from is after a while."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    root = tmp_path_factory.mktemp("ours")
    checkpoint, engine = open_engine("qwen2_5_vl", root, servers={"count": 2})
    shutil.rmtree(root / "qwen2_5_vl")
    told = []
    for server in engine.backend.servers:
        server.tell = told.append
    yield checkpoint, engine, told
    engine.close()
    assert not any(server.process.process.poll() is None for server in engine.backend.servers)


def play_groups(engine, groups, tokens=8):
    """A trajectory of each group, played at a time."""
    family, medium = engine.family, picture(0)
    prompt = family.encode_prompt([Message(role="user", parts=(Part(media=0), Part(text="What?")))], (medium,), ())

    async def run(group):
        answer = await ask(engine, 0, 0, prompt, (medium,), tokens, group=group)
        engine.release(f"{group}/0")
        return answer

    async def run_all():
        for group in groups:
            engine.open(f"{group}/0", group)
        return await asyncio.gather(*map(run, groups))

    seen = Segment(source=Source.PROMPT, ids=prompt.ids, spans=prompt.spans)
    media = {medium.key: medium}
    return [
        Trajectory(sample_id=g, index=0, segments=(seen, answer), turns=(), stop=StopReason.ANSWERED, media=media)
        for g, answer in zip(groups, asyncio.run(run_all()), strict=True)
    ]


def test_groups_have_places_and_one_of_two_servers_may_die(ours, monkeypatch):
    checkpoint, engine, told = ours
    engine.backend._places.clear()
    first, second = engine.backend.servers
    asked, generate, processes = [], Client.generate, [first.process, second.process]

    def note(client, *arguments):
        asked.append(first if client is first.client else second)
        if len(asked) == 4:
            threading.Timer(0.1, os.killpg, [second.process.process.pid, signal.SIGKILL]).start()
        return generate(client, *arguments)

    monkeypatch.setattr(Client, "generate", note)
    assert_equal(checkpoint, play_groups(engine, ["4", "5", "6", "7"], tokens=300))
    assert asked[:4] == [first, second, first, second]
    assert set(asked[4:]) == {second}
    assert first.process is processes[0]
    assert second.process is not processes[1]
    assert len(told) == 1
    assert re.match(r"vLLM server 1 \(log: .*1\.log\): ended with code -9: .*; it is started again", told.pop())


def test_a_server_that_hangs_while_it_takes_weights_is_started_again(ours, monkeypatch):
    checkpoint, engine, told = ours
    server, push, calls = engine.backend.servers[1], Server._push, itertools.count()

    def stop(self):
        if self is server and next(calls) == 0:
            os.killpg(self.process.process.pid, signal.SIGSTOP)
        push(self)

    monkeypatch.setattr(Server, "_push", stop)
    monkeypatch.setattr(server.client, "options", server.options.model_copy(update={"timeout_s": 5}))
    change(checkpoint.model, 7)
    engine.weights_changed(vision=True)
    assert_equal(checkpoint, play_groups(engine, ["4", "5", "6", "7"]))
    assert len(told) == 1
    assert "server 1" in told[0]
    assert "no answer in 5 s (rollout.servers.timeout_s)" in told.pop()


class Hanging(BaseHTTPRequestHandler):
    """A server elsewhere that is well and never has the weights."""

    def do_GET(self):
        model = {"max_model_len": 2112, "dtype": "torch.float32"}
        self.reply({"weight_version": "default", "vllm_config": {"model_config": model}})

    def do_POST(self):
        if self.path == "/collective_rpc":
            self.server.pushes += 1
            self.server.end.wait()
        self.reply({})

    def reply(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_): ...


@pytest.fixture
def hanging():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hanging)
    server.daemon_threads, server.end, server.pushes = True, threading.Event(), 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.end.set()
    server.shutdown()
    server.server_close()


def test_a_server_elsewhere_that_never_takes_weights_is_given_up(hanging, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    url, told = f"http://127.0.0.1:{hanging.server_port}", []
    options = ServersSection(urls=[url], timeout_s=0.5, max_restarts=2)
    servers = Servers(options, FITS, SharedFeatures(tmp_path), tmp_path, tell=told.append)
    for _ in range(2):
        with pytest.raises(MmrlError, match=r"^vLLM server 0 .* since 2 restarts .*: no answer in 0.5 s [^\n]*$"):
            servers.take_weights(0, lambda: iter([("a", torch.zeros(2))]))
    assert hanging.pushes == 3
    assert [line.count("waited for") for line in told] == [1, 1]
    assert len(list(tmp_path.glob("*weights-*"))) == 1


def test_a_trainer_ends_while_a_server_elsewhere_hangs(hanging, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    code = f"""
import time, torch
from pathlib import Path
from mmrl.cache.shared import SharedFeatures
from mmrl.config import ServersSection
from mmrl.rollout.vllm_servers import Servers
options = ServersSection(urls=["http://127.0.0.1:{hanging.server_port}"], timeout_s=1000)
servers = Servers(options, {FITS}, SharedFeatures({str(tmp_path)!r}), Path({str(tmp_path)!r}))
try:
    servers.take_weights(0, lambda: iter([("a", torch.zeros(2))]))
except KeyboardInterrupt:
    servers.close()
    print("closed")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not hanging.pushes and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    assert process.communicate(timeout=60)[0] == "closed\n"
    assert process.returncode == 0
    assert time.monotonic() - begin < 10


def test_weights_that_are_not_all_are_refused(opened, elsewhere, tmp_path, monkeypatch):
    checkpoint, engine = opened
    monkeypatch.setenv("MINE", TOKEN)
    options = ServersSection(urls=[elsewhere.url], token_env="MINE")
    other = Servers(options, FITS, SharedFeatures(tmp_path), tmp_path)
    left_out = "model.layers.0.mlp.down_proj.weight"
    weights = dict(engine.weights())
    del weights[left_out]
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http.*\): /collective_rpc answered 500"):
        other.take_weights(0, weights.items)
    assert f"weights for language_{left_out.replace('model.', 'model.model.', 1)}\n" in elsewhere.log.read_text()
    other.close()
    assert_equal(checkpoint, play(engine, *VISION["image"]))


def test_a_server_elsewhere_that_does_not_fit_is_told(elsewhere, opened, tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", TOKEN)
    told, options = [], ServersSection(urls=[elsewhere.url], token_env="MINE")
    with pytest.raises(MmrlError, match=r"takes 2112 tokens, .* up to 2113: start it with --max-context 2113$"):
        Servers(options, FITS | {"max_model_len": 2113}, SharedFeatures(tmp_path), tmp_path)
    Servers(options, FITS | {"dtype": "bfloat16"}, SharedFeatures(tmp_path), tmp_path, tell=told.append).close()
    assert len(told) == 1
    assert "in float32 and the trainer in bfloat16" in told[0]


@contextmanager
def few_files(free):
    """So many may be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = max(map(int, os.listdir("/proc/self/fd"))) + free
    filled = [os.open(os.devnull, os.O_RDONLY)]
    while filled[-1] < low - free:
        filled.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (low + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for file in filled:
            os.close(file)


def test_a_trainer_without_files_to_open_takes_no_server_for_dead(opened, monkeypatch):
    checkpoint, engine = opened
    server, lacks, found, asked = engine.backend.servers[0], vllm_client.out_of_files, [], [0, 0]
    rounds, generate = server.rounds, Client.generate

    async def count(*arguments):
        asked[:] = asked[0] + 1, max(asked[1], asked[0] + 1)
        try:
            return await generate(*arguments)
        finally:
            asked[0] -= 1

    monkeypatch.setattr(vllm_client, "out_of_files", lambda error: found.append(lacks(error)) or found[-1])
    monkeypatch.setattr(Client, "generate", count)
    play(engine, *VISION["image"])  # what is opened once is open
    with few_files(10):
        most = max_in_flight()
        played = play(engine, *VISION["image"], siblings=60)
    assert_equal(checkpoint, played)
    assert any(found)
    assert server.rounds == rounds
    assert asked[1] == min(most, 60) > 10


def test_the_number_of_a_servers_group_is_kept_until_it_is_ended(tmp_path, monkeypatch):
    process = ServerProcess({"model": "none"}, TOKEN, tmp_path / "0.log", None)
    number = process.process.pid
    os.killpg(number, signal.SIGKILL)
    while not process.ended():
        time.sleep(0.01)
    assert process.ended()
    assert Path(f"/proc/{number}").exists()
    assert process.ending() == "ended with code -9: no error in its log"
    assert not Path(f"/proc/{number}").exists()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("another's group may have this number by now"))
    process.end()


def test_a_server_that_others_reach_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("MMRL_ENGINE_TOKEN", raising=False)
    options = {
        "port": 1,
        "folder": tmp_path,
        "dtype": "float32",
        "max_context": 1,
        "token_env": "MMRL_ENGINE_TOKEN",
        "settings": (),
    }
    for host in ("0.0.0.0", "::", "10.0.0.1"):
        with pytest.raises(ConfigError, match=f"--host {host}: .* the environment variable MMRL_ENGINE_TOKEN"):
            serve("model", host=host, **options)


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    """Killed, it can end nothing itself; what the command started ends too."""
    sleep = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid, flush=True)"
    parent = (
        "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-m', 'mmrl.rollout.vllm_watch', "
        f"str(os.getpid()), sys.executable, '-c', {sleep + '; import time; time.sleep(1000)'!r}], "
        "start_new_session=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    with process:
        grandchild = int(process.stdout.readline())
        assert running(grandchild)
        process.kill()
        deadline = time.monotonic() + 10
        while running(grandchild) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not running(grandchild)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_server_has_devices_of_its_own(monkeypatch):
    names = ["0", "1", "2", "3", "4"]
    assert [place(names, number, 2, 1) for number in (0, 1)] == ["1,2", "3,4"]
    assert place(["7"], 0, 1, 0) == "7"
    with pytest.raises(ConfigError, match=r"server 2 wants GPUs 5 to 6, and 5 are visible"):
        place(names, 2, 2, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a,GPU-b,7,5")
    assert devices_of(0, {"tensor_parallel_size": 2, "data_parallel_size": 2}, 1) == "GPU-a,GPU-b,7,5"
    assert devices_of(1, {"pipeline_parallel_size": 2, "seed": 7}, 0) == "GPU-b,7"


def test_switches_that_are_off_reach_vllm(tmp_path):
    import yaml

    serve_command({"enable_prefix_caching": False, "seed": None}, "127.0.0.1", 1, tmp_path / "vllm.yaml")
    values = yaml.safe_load((tmp_path / "vllm.yaml").read_text())
    assert values["enable-prefix-caching"] is False
    assert not [key for key in values if "_" in key or key == "seed"]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"servers": {"count": 1}}, "set engine: vllm"),
        ({"engine": "vllm", "servers": {}}, "give count"),
        ({"engine": "vllm", "servers": {"count": 1, "urls": ["http://a:1"]}, "folder": "f"}, "give count"),
        ({"engine": "vllm", "servers": {"urls": ["http://a:1"]}}, "urls need folder"),
        ({"engine": "vllm", "servers": {"urls": ["http://a:1"]}, "folder": "f", "vllm": {"seed": 1}}, "by --set"),
        ({"engine": "vllm", "servers": {"urls": ["a:1"]}, "folder": "f"}, "should match pattern"),
    ],
)
def test_sections_that_make_no_sense_are_refused(section, told):
    with pytest.raises(ValidationError, match=told):
        RolloutSection(**section)
