"""A quick `python -m hessdist`: a process that has imported PyTorch forks one for each command.

`python ready.py SOCKET WORDS` is the command. It sends its words, folder, environment and open
files to the server, passes signals on, and ends as the forked process does. It works under mpirun,
which takes it for the rank. It is for tests of what a command does; those of how a process starts
and dies use `python -m hessdist` itself (`conftest.HESSDIST`).

This file imports nothing that takes long.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys

IMPORTED = ("torch", "torch._dynamo", "pydantic", "tomlkit", "typer", "rich.console", "rich.table")
"""What the server imports: not h5py, which Debian has with and without MPI, nor MPI itself."""


def ask(path: str, words: list[str]) -> None:
    """Have a process forked for a command, and end as it does."""
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request)
        pid = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: os.kill(pid, number))
        status = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big", signed=True)
    if status < 0:
        if -status != signal.SIGKILL:  # which nothing may handle
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(path: str) -> list[str]:
    """Fork a process for each request, until standard input ends.

    Returns:
        In a forked process, the words of its command.
    """
    for name in IMPORTED:
        __import__(name)
    gc.collect()
    gc.freeze()  # no collection in a forked process looks at these objects, and copies their pages
    running: dict[int, tuple[socket.socket, int]] = {}  # by the descriptor of a process
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        clients = [client for client, _ in running.values()]
        ready, _, _ = select.select([0, listener, *running, *clients], [], [])
        if 0 in ready:
            os._exit(0)
        for process in [one for one in running if one in ready]:
            client, pid = running.pop(process)
            _send(client, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            client.close()
            os.close(process)
        for client, pid in running.values():
            if client in ready:  # it has ended, so its process must
                os.kill(pid, signal.SIGKILL)
        if listener not in ready:
            continue
        client = listener.accept()[0]
        size, files, _, _ = socket.recv_fds(client, 8, 3)
        request = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        pid = os.fork()
        if not pid:
            for one in (listener, client, *clients):
                one.close()
            return _become(json.loads(request), [*files, *running])
        for file in files:
            os.close(file)
        _send(client, pid)
        running[os.pidfd_open(pid)] = client, pid


def _send(client: socket.socket, number: int) -> None:
    try:
        client.sendall(number.to_bytes(8, "big", signed=True))
    except OSError:
        return  # nobody waits for it


def _become(request: tuple[list[str], str, dict[str, str]], files: list[int]) -> list[str]:
    words, folder, environment = request
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return words


def run(words: list[str]) -> None:
    """Run a command in a forked process, and end as Python would, but without taking it apart.

    That takes longer than most commands: every object of PyTorch is destroyed.
    """
    end = os._exit  # before hessdist refuses it
    sys.argv = ["hessdist", *words]
    sys.path[0] = os.getcwd()
    try:
        runpy.run_module("hessdist", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi and mpi.Is_initialized() and not mpi.Is_finalized():
            mpi.Finalize()
        end(int(ended.code or 0))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        run(serve(sys.argv[2]))
    else:
        ask(sys.argv[1], sys.argv[2:])
