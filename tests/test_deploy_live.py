"""Rollouts on a server that runs: the embedded one, with the flags and files of the bundle."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from serving_models import save_images

from frostline import cli, client, deploy
from frostline.serving import backends

PIXELS = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.fixture
def exports(tmp_path):
    """Version 1 is published, version 2 lies ready."""
    for number, base in (("1", tmp_path / "saved_model" / "tiny"), ("2", tmp_path / "ready")):
        save_images(base / number)
        about = {"name": "tiny", "version": int(number), "class_names": ["cat", "dog", "owl"]}
        (base / number / "manifest.json").write_text(json.dumps(about))
    return tmp_path


@contextlib.contextmanager
def running(exports):
    """The address of a server that is started as the compose file does, but for the ports and the polling."""
    folder, _ = deploy.bundle(exports, models_at=str(exports / "saved_model"))
    flags = re.findall(r"^    - (--\S+)", (folder / "docker-compose.yml").read_text(), re.M)
    flags = [flag.replace("/serving/", f"{folder}/") for flag in flags if "port=" not in flag and "poll" not in flag]
    port, rest_port = backends._free_ports(2)
    flags += [f"--port={port}", f"--rest_api_port={rest_port}", "--model_config_file_poll_wait_seconds=1"]
    command = [sys.executable, "-m", "frostline.cli", "serve", "--backend", "embedded", *flags]
    with (exports / "log.txt").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.PIPE)
    try:
        backends._wait(child, f"http://127.0.0.1:{rest_port}", ["tiny"], exports / "log.txt")
        yield f"http://127.0.0.1:{rest_port}"
    finally:
        backends._end(child)


@pytest.mark.slow
def test_who_asks_by_label_sees_no_failure(exports):
    done, failures, answered = threading.Event(), [], {"stable": 0, "canary": 0}

    def ask(url, label):
        with client.connect(url, retries=0, timeout=60) as connection:
            while not done.is_set():
                try:
                    connection.predict("tiny", PIXELS, label=label)
                    answered[label] += 1
                except client.ServingError as error:
                    failures.append((label, str(error)))

    def run(*args):
        return cli.main([*args, "tiny", "--exports", str(exports), "--url", url, "--timeout", "120"])

    with running(exports) as url, client.connect(url) as connection:
        clients = [threading.Thread(target=ask, args=(url, label)) for label in answered]
        for one in clients:
            one.start()
        try:
            shutil.move(exports / "ready" / "2", exports / "saved_model" / "tiny" / "2")
            for args, versions in [
                (("rollout",), {"stable": 1, "canary": 2}),
                (("rollout", "--promote"), {"stable": 2, "canary": 2}),
                (("rollback",), {"stable": 1, "canary": 1}),
                (("rollout",), {"stable": 1, "canary": 2}),
                (("rollout", "--promote"), {"stable": 2, "canary": 2}),
                (("rollout", "--finish"), {"stable": 2, "canary": 2}),
                (("rollback",), {"stable": 1, "canary": 1}),  # loads version 1 again
            ]:
                assert run(*args) == 0
                assert {label: connection.metadata("tiny", label=label).version for label in versions} == versions
        finally:
            done.set()
            for one in clients:
                one.join()
    assert failures == [] and min(answered.values()) > 10
    assert "is not in force" not in (exports / "log.txt").read_text()
