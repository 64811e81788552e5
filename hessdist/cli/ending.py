"""How the program ends: by its own decision, with its own status, and whatever threads are left."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from traceback import walk_stack
from typing import Any, NoReturn

from hessdist.errors import InputError
from hessdist.parallel.ranks import launched_rank
from hessdist.unforeseen import ENDS_THE_PROGRAM, place_in

_exit: Callable[[int], NoReturn] = os._exit


def refuse_exits() -> None:
    """Make `os._exit` in code of the job an error with a line, as `sys.exit` there is one.

    It would end the program with a status of the job's choice, 0 included, and without a word.
    Processes that the job has forked may use it.
    """
    process = os.getpid()

    def refused(status: int) -> NoReturn:
        if os.getpid() != process:
            _exit(status)
        calls = [
            (f.f_code.co_filename, n, f.f_code.co_name) for f, n in walk_stack(sys._getframe(1))
        ]
        what = f"code of the job ends the program by itself (os._exit({status}){place_in(calls)})"
        rank = launched_rank()
        line = str(InputError(f"rank {rank}: {what}" if rank else what, ENDS_THE_PROGRAM))
        print("hessdist:", " ".join(line.split()), file=sys.stderr, flush=True)
        if (mpi := _running_mpi()) is not None and mpi.COMM_WORLD.Get_size() > 1:
            mpi.COMM_WORLD.Abort(InputError.exit_status)
        _exit(InputError.exit_status)

    os._exit = refused


def leave(status: int) -> NoReturn:
    """End the program, without waiting for threads of the job that do not end.

    Args:
        status: The exit status.
    """
    main = threading.main_thread()
    if any(one is not main and not one.daemon for one in threading.enumerate()):
        if (mpi := _running_mpi()) is not None:
            mpi.Finalize()
        leave_at_once(status)
    sys.exit(status)


def leave_at_once(status: int) -> NoReturn:
    """End the program without the clean-up of libraries, which can crash or hang after an error.

    Args:
        status: The exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _exit(status)


def _running_mpi() -> Any:
    """The module `mpi4py.MPI` between its start and its end; None otherwise."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized() else None
