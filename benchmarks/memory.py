"""Memory that an action needs, and functions in a process of their own (on Linux)."""

import ctypes
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20


def resident(key: str) -> int:
    """Return a size of this process in bytes: ``VmRSS`` now, ``VmHWM`` the highest so far.

    ``RssAnon`` leaves out the pages of files, which the system takes back when it needs them.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: this measurement needs Linux")


def raised(action: Callable[[], object]) -> float:
    """Return by how many MiB the action raises this process's resident size at its highest."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not free memory of the action's
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    action()
    return (resident("VmHWM") - before) / MIB


def highest_anonymous(action: Callable[[], object]) -> float:
    """Return this process's highest anonymous memory during the action, in MiB.

    The system keeps no record of it: a thread looks every 20 ms.
    """
    done, highest = threading.Event(), resident("RssAnon")

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return highest / MIB


def isolated(function: Callable[..., Any], timeout: float | None = None, **arguments: Any) -> Any:
    """Return what a function of a module returns in a process of its own; all of it is JSON.

    Raises
    ------
    subprocess.SubprocessError
        If the process takes longer than ``timeout`` seconds, or fails: is out of memory, say.
    """
    module = function.__globals__["__spec__"].name  # __module__ may be "__main__"
    code = (
        f"import json, sys; from {module} import {function.__name__} as function; "
        "result = function(**json.loads(sys.argv[1])); print(json.dumps(result))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout)
    return json.loads(done.stdout.splitlines()[-1])
