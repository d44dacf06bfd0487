"""The files of `exports/serving` besides models.config, as text."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from frostline.batching import ALLOWED_SIZES

# The versions that go with the TensorFlow that exports; the project's tests did not run them.
IMAGE, GPU_IMAGE = "tensorflow/serving:2.21.0", "tensorflow/serving:2.21.0-gpu"
METRICS = "/monitoring/prometheus/metrics"
POLL_SECONDS = 10

MONITORING = f"""\
# TensorFlow Serving's --monitoring_config_file: metrics for Prometheus, at this path of the REST port.
prometheus_config {{ enable: true path: "{METRICS}" }}
"""

COMPOSE = """\
# docker compose --profile cpu up        (or --profile gpu, with the NVIDIA container toolkit)
# Written by `frostline bundle`. Nobody ran it where it was written: there was no docker.
x-server: &server
  entrypoint: [tensorflow_model_server]
  command:
    - --port=8500
    - --rest_api_port=8501
    - --model_config_file=/serving/models.config
    - --model_config_file_poll_wait_seconds={poll}
    # at the start no version is loaded yet that a label could mean
    - --allow_version_labels_for_unavailable_models=true
    # with five, a minute apart, the reason why a version does not load comes when `frostline rollout` has given up
    - --max_num_load_retries=1
    - --monitoring_config_file=/serving/monitoring.config
{batching}
  ports: ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]  # it asks nobody who they are: keep it off the network
  volumes:
{models}
    - .:/serving:ro  # the folder, not its files: a file that is replaced would not be seen
  healthcheck:
    test: [CMD, bash, /serving/health.sh]  # the image has no curl
    interval: 10s
    timeout: 10s
    retries: 3
    start_period: 5m
  restart: unless-stopped

services:
  cpu:
    <<: *server
    profiles: [cpu]
    image: {image}
  gpu:
    <<: *server
    profiles: [gpu]
    image: {gpu_image}
    deploy:
      resources:
        reservations:
          devices:
            - {{driver: nvidia, count: 1, capabilities: [gpu]}}
"""
BATCHING = """\
    - --enable_batching=true
    - --batching_parameters_file=/serving/batching.config"""
NO_BATCHING = "    # no --enable_batching: larger batches were measured, and gave no more images a second"

CURL = """\
#!/usr/bin/env bash
# One request to the stable version of {who}. bash curl.sh [http://HOST:8501]
# curl 7.76 or newer: --fail-with-body prints what the server says of an error.
cd "$(dirname "$0")" || exit
url=${{1:-http://127.0.0.1:8501}}
worst=0
for model in {models}; do
  echo "$model"
  curl --silent --show-error --fail-with-body --max-time 30 --noproxy 127.0.0.1,localhost --data @request.json \\
    "$url/v1/models/$model/labels/stable:predict" || worst=$?
  echo
done
exit $worst
"""

HEALTH = """\
#!/usr/bin/env bash
# 0 when every model answers; /v1/models/NAME itself says 200 also of one that still loads. bash health.sh [HOST [PORT]]
for model in {models}; do
  exec 3<>"/dev/tcp/${{1:-127.0.0.1}}/${{2:-8501}}" || exit 1
  printf 'GET /v1/models/%s/metadata HTTP/1.1\\r\\nHost: health\\r\\nConnection: close\\r\\n\\r\\n' "$model" >&3
  read -r -t 5 _ status _ <&3 || exit 1
  exec 3>&-
  [ "$status" = 200 ] || {{ echo "$model: $status"; exit 1; }}
done
"""


def batching(parameters: str, reason: str, threads: int) -> str:
    """TensorFlow Serving's --batching_parameters_file."""
    return f"""\
# TensorFlow Serving's --batching_parameters_file, with --enable_batching. Sizes and time-out are {reason}.
# {threads} at once is half the cores of the machine that wrote this: set it for the machine that serves.
# --enable_per_model_batching_parameters takes each version's own batching_params.pbtxt in place of the sizes here.
{parameters}"""


def compose(root: str, batch: bool) -> str:
    """A docker-compose.yml in which the server sees the SavedModels below `root`, a folder or the URI of a bucket."""
    lines = BATCHING if batch else NO_BATCHING
    models = f"    # the models are read from {root}" if "://" in root else f"    - ../saved_model:{root}:ro"
    return COMPOSE.format(poll=POLL_SECONDS, batching=lines, models=models, image=IMAGE, gpu_image=GPU_IMAGE)


def request(image: bytes) -> str:
    """A predict request with one encoded image, for any model."""
    rows = [{"b64": base64.b64encode(image).decode()}]
    return json.dumps({"signature_name": "serving_bytes", "instances": rows}) + "\n"


def curl(models: Sequence[str]) -> str:
    """A script that sends it to each model."""
    return CURL.format(models=_words(models), who="each model" if len(models) > 1 else models[0])


def health(models: Sequence[str]) -> str:
    """A script that asks for the metadata of each model."""
    return HEALTH.format(models=_words(models))


def _words(models: Sequence[str]) -> str:
    return " ".join(shlex.quote(model) for model in models)


# -- README --------------------------------------------------------------------------------------------

README = """\
# {count} for TensorFlow Serving

Written by `frostline bundle`, from the manifests beside the models; written anew after each export.

    docker compose --profile cpu up                      # or --profile gpu; was not run where this was written
    bash curl.sh                                         # one request to each model
    frostline predict photo.jpg --model {first} --label stable

Without a container the models lie elsewhere: `frostline bundle EXPORTS --models-at /their/folder`, then either of

    tensorflow_model_server --port=8500 --rest_api_port=8501 FLAGS
    frostline serve FLAGS                                # its small server, where there is no other

with `--model_config_file=$PWD/models.config --model_config_file_poll_wait_seconds={poll}
--allow_version_labels_for_unavailable_models=true --max_num_load_retries=1` for FLAGS. (`frostline serve EXPORTS` has
no labels.)

| file | what |
|---|---|
| models.config | models, versions and labels; `frostline rollout` and `rollback` change it, the server polls it |
| batching.config | batches of up to {batch} images; a request with more than {most} is refused |
| monitoring.config | metrics for Prometheus at `{metrics}` of the REST port |
| docker-compose.yml, health.sh | a CPU and a GPU server, healthy once every model answers |
| curl.sh, request.json | a request to try |

## A new version

    frostline rollout MODEL --url grpc://127.0.0.1:8500              # load it, then call it canary
    frostline rollout MODEL --url grpc://127.0.0.1:8500 --promote    # call it stable, too
    frostline rollout MODEL --url grpc://127.0.0.1:8500 --finish     # unload the old one
    frostline rollback MODEL --url grpc://127.0.0.1:8500             # or one step back

Without `--url` each command writes one step, and says what to type when the server has polled it. A request that names
neither a label nor a version is answered by the highest version that is loaded, so ask for `stable`.

## Models

gRPC: `PredictionService/Predict` with `model_spec {{name, version_label: "stable", signature_name}}`. REST:
`POST /v1/models/NAME/labels/stable:predict` with `{{"signature_name": ..., "instances": [...]}}`, encoded images as
`{{"b64": ...}}`. The Classify API: `POST /v1/models/NAME/labels/stable:classify` with
`{{"signature_name": "classify", "examples": [{{"image/encoded": {{"b64": ...}}}}]}}`. N is any number of images{upto}.
"""


def readme(manifests: Mapping[str, Mapping[str, Any]], sizes: Sequence[int]) -> str:
    """What each model takes and gives, in the words of its manifest."""
    many = len(manifests) > 1
    head = README.format(
        count=f"{len(manifests)} models" if many else "A model",
        first=next(iter(manifests)),
        poll=POLL_SECONDS,
        batch=sizes[-1],
        most=ALLOWED_SIZES[-1],
        metrics=METRICS,
        upto=f" up to {ALLOWED_SIZES[-1]}" if len(sizes) > 1 else "",
    )
    return head + "".join(_model(name, manifest) for name, manifest in manifests.items())


def _model(name: str, manifest: Mapping[str, Any]) -> str:
    source = f"configuration `{manifest.get('freeze')}` of study `{manifest.get('study')}`"
    about = f"Version {manifest['version']}: {source}"
    classes = ", ".join(f"`{one}`" for one in manifest["class_names"][:20])
    more = len(manifest["class_names"]) - 20
    rows = [
        f"| `{signature}` | {_tensors(sides['inputs'])} | {_tensors(sides['outputs'])} |"
        for signature, sides in manifest.get("signatures", {}).items()
    ]
    table = "\n".join(["| signature | takes | gives |", "|---|---|---|", *rows])
    return f"\n### {name}\n\n{about}. Classes: {classes}{f' and {more} more' if more > 0 else ''}.\n\n{table}\n"


def _tensors(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    written = [
        f"`{name}` {one['dtype']} [{', '.join('N' if size is None else str(size) for size in one['shape'])}]"
        for name, one in tensors.items()
    ]
    return "; ".join(written)
