"""Start a script on MXNet's parameter server with several workers, all on this machine.

    python examples/local_cluster.py --workers 2 -- examples/qat_digits.py --kvstore dist_sync

One scheduler, one server and N workers run; the output is that of the workers.  On several machines the same
environment variables do it, with DMLC_PS_ROOT_URI naming the scheduler's.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import click


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1))
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED)
def main(workers: int, script: tuple[str, ...]) -> None:
    """Run a training script in N workers."""
    shared = {**os.environ, "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(free_port()),
              "DMLC_NUM_WORKER": str(workers), "DMLC_NUM_SERVER": "1", "DMLC_NODE_HOST": "127.0.0.1"}

    def start(role: str, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env={**shared, "DMLC_ROLE": role})

    helpers = [start(role, [sys.executable, "-W", "ignore", "-c", "import mxnet"]) for role in ("scheduler", "server")]
    running = [start("worker", [sys.executable, *script]) for _ in range(workers)]
    failed = 0
    while not failed and any(process.poll() is None for process in running):
        time.sleep(0.2)
        failed = next((process.returncode for process in running if process.poll()), 0)
    for process in [*running, *helpers]:
        if failed:
            process.terminate()  # the others would wait for the one that is gone
        process.wait()
    sys.exit(failed)


if __name__ == "__main__":
    main()
