"""vLLM in a real server: what it writes, what it is sent, whom it obeys, and what is said of one that fails.

It is `mmrl serve-engine`; tests/e2e/test_vllm_kills.py has servers that a run starts, and their ends.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import families
import httpx2
import pytest
import torch
from pydantic import ValidationError
from vllm_play import ARGUMENTS, VISION, assert_equal, change, open_engine, picture, play

from mmrl.config import RolloutSection, ServersSection
from mmrl.errors import ConfigError, MmrlError
from mmrl.rollout.vllm_process import devices_of, place, serve_command
from mmrl.rollout.vllm_serve import serve
from mmrl.rollout.vllm_servers import Servers

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
TOKEN = "secret"


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
        command += ["--port", self.port, "--max-context", 2112, "--token-env", "MINE", "--set", "dtype=float32"]
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
        servers = {"urls": [elsewhere.url + "/"], "folder": str(elsewhere.folder)}
        checkpoint, engine = open_engine("qwen2_5_vl", elsewhere.model.parent, servers=servers, vllm={})
    yield checkpoint, engine
    engine.close()


def test_log_probs_equal_the_trainers_after_every_update(opened):
    checkpoint, engine = opened
    for step in range(4):
        for case in ("image", "turns"):
            assert_equal(checkpoint, play(engine, *VISION[case]), (step, case))
        change(checkpoint.model, step)
        engine.weights_changed(vision=True)
    assert [file.name for file in engine.shared.folder.glob("weights-*")] == [f"weights-{engine.writer._run}.3"]


def test_a_medium_is_written_once_for_a_group_of_any_size(opened):
    _, engine = opened
    sent, written = {}, {}
    for siblings in (1, 8):
        before = engine.writer.bytes_sent, engine.shared.bytes_written
        play(engine, *VISION["image"], siblings=siblings)
        sent[siblings] = engine.writer.bytes_sent - before[0]
        written[siblings] = engine.shared.bytes_written - before[1]
    assert written[1] == written[8] > 0
    assert sent[8] == pytest.approx(8 * sent[1], rel=0.01)


def test_a_request_grows_with_a_picture_by_its_placeholders_only(opened):
    _, engine = opened
    sent = []
    for number, side in enumerate((2, 20)):
        before = engine.writer.bytes_sent
        play(engine, (picture(50 + number, side, side),), siblings=1)
        sent.append(engine.writer.bytes_sent - before)
    assert sent[1] - sent[0] <= 4 * (20 * 20 - 2 * 2) + 8  # ids of three digits, and numbers of more


def test_what_another_trainers_weights_write_is_not_accepted(opened, elsewhere, tmp_path, monkeypatch):
    """It takes the server over between two turns: the same version number, other weights."""
    checkpoint, engine = opened
    play(engine, *VISION["image"])
    server = engine.writer.servers[0]
    monkeypatch.setenv("OTHERS", TOKEN)
    options = ServersSection(urls=[elsewhere.url], folder=str(tmp_path), token_env="OTHERS")
    other = Servers(options, {}, tmp_path, tmp_path)
    other.take_weights(engine.version, lambda: ((name, torch.zeros_like(value)) for name, value in engine.weights()))
    rounds = server.rounds
    assert_equal(checkpoint, play(engine, *VISION["turns"]))
    assert server.rounds > rounds
    other.close()
    assert not list(tmp_path.iterdir())


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
    options = ServersSection(urls=[elsewhere.url], folder=str(tmp_path), token_env="MINE")
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http://127.*\) refuses the token: MINE must hold [^\n]*$"):
        Servers(options, {}, tmp_path, tmp_path).take_weights(0, dict)


def test_a_folder_that_a_server_does_not_see_is_named(opened, elsewhere, tmp_path):
    server = opened[1].writer.servers[0]
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http.*\): /collective_rpc answered 500"):
        server._ask("POST", "/collective_rpc", {"method": "take_weights", "args": [str(tmp_path)]})
    assert f"FileNotFoundError: {tmp_path} holds no weights" in elsewhere.log.read_text()


def test_a_server_that_does_not_start_is_told_in_a_line_with_its_log(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    told = r"^vLLM server 0 \(log: .*/servers/0.log\) ended with code \d+ while it started: [^\n]*many[^\n]*$"
    with pytest.raises(MmrlError, match=told) as caught:
        open_engine("qwen2_5_vl", tmp_path, servers={"count": 1}, vllm=ARGUMENTS | {"block_size": "many"})
    assert Path(re.search(r"log: (.*?)\)", str(caught.value))[1]).is_file()


def test_a_server_that_is_not_there_is_waited_for_as_long_as_was_said(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    options = ServersSection(urls=["http://127.0.0.1:9"], folder=str(tmp_path), start_timeout_s=1)
    begin = time.monotonic()
    with pytest.raises(MmrlError, match=r"^vLLM server 0 \(http://127.0.0.1:9\) is not ready after 1 s"):
        Servers(options, {}, tmp_path, tmp_path)
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


def test_a_server_that_others_reach_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("MMRL_ENGINE_TOKEN", raising=False)
    options = {"port": 1, "folder": tmp_path, "max_context": 1, "token_env": "MMRL_ENGINE_TOKEN", "settings": ()}
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
        ({"engine": "vllm", "servers": {"count": 1, "urls": ["http://a:1"], "folder": "f"}}, "give count"),
        ({"engine": "vllm", "servers": {"urls": ["http://a:1"]}}, "urls need folder"),
        ({"engine": "vllm", "servers": {"urls": ["http://a:1"], "folder": "f"}, "vllm": {"seed": 1}}, "by --set"),
        ({"engine": "vllm", "servers": {"urls": ["a:1"], "folder": "f"}}, "should match pattern"),
    ],
)
def test_sections_that_make_no_sense_are_refused(section, told):
    with pytest.raises(ValidationError, match=told):
        RolloutSection(**section)
