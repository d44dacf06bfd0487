"""TensorFlow Serving in a docker container: which image is here, and the command line that starts it."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from frostline.serving.flags import address

IMAGE = "tensorflow/serving"
FILE_FLAG = re.compile(r"(--\w+_file)=(.+)")
FOLDER_FLAG = re.compile(r"(--model_base_path)=((?!\w+://).+)")
BASE_PATH = re.compile(r"""\bbase_path\s*:\s*(["'])(/(?:[^\\]|\\.)*?)\1""")


def image() -> str | None:
    """An image that the docker daemon has; nothing is pulled."""
    if not shutil.which("docker"):
        return None
    command = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", IMAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return None
    found = [line for line in done.stdout.split() if not line.endswith(":<none>")]
    return found[0] if done.returncode == 0 and found else None


def command(flags: Sequence[str], host: str, port: int, rest_port: int, folders: Iterable[Path]) -> list[str]:
    """The command line; the container sees `folders`, and what the flags and their models.config name, where they lie.

    Paths become absolute, because the container has another working folder.
    """
    seen, absolute = set(folders), []
    for flag in flags:
        if found := FILE_FLAG.fullmatch(flag) or FOLDER_FLAG.fullmatch(flag):
            path = Path(found[2]).absolute()
            flag = f"{found[1]}={path}"
            seen |= {path} if FOLDER_FLAG.fullmatch(flag) else {path.parent}
            if found[1] == "--model_config_file" and path.is_file():
                seen |= _base_paths(path.read_text("utf-8", "replace"))
        absolute.append(flag)
    volumes = [f"--volume={folder}:{folder}:ro" for folder in sorted(seen) if folder.is_dir()]  # docker makes others
    publish = [f"--publish={address(host, port)}:8500", f"--publish={address(host, rest_port)}:8501"]
    return ["docker", "run", "--rm", "--init", *publish, *volumes, image() or IMAGE, *absolute]


def _base_paths(config: str) -> set[Path]:
    """The absolute base paths in the text of a models.config, whose writer may have escaped them byte by byte."""
    quoted = [found[2].encode() for found in BASE_PATH.finditer(config)]
    plain = [text.decode("unicode_escape", "replace").encode("latin-1", "replace") for text in quoted]
    return {Path(text.decode(errors="replace")) for text in plain}
