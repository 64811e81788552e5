"""Processes that read ahead end with the process that they read for, however that one ends."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from left_behind import Traces

NUMBERED = """
import time

class Numbered:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        time.sleep({seconds})
        return float(index), index
"""

# Ends in the middle of a pass, after the first batch, or between two passes over the shard.
SCRIPT = """
import os, signal, sys
import numpy as np
import torch
from numbered_samples import Numbered
from hessdist.workload.shard import Shard

shard = Shard(
    Numbered(), np.arange(64), batch_size=8, device=torch.device("cpu"), dtype=torch.float64,
    memory=0, workers={workers},
)
for number, _ in shard.batches():
    if number == {number}:
        break
print("ready", flush=True)
{ending}
"""

ENDINGS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "at once": "os._exit(3)",
    "a fault of memory": "os.kill(os.getpid(), signal.SIGSEGV)",
    "an error": "raise RuntimeError('on purpose')",
    "in the usual way": "",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left_of_a_process_that_ends(tmp_path: Path, ending: str) -> None:
    draw = random.Random(ending)
    number = draw.choice([0, 3, 7, -1])  # -1: the whole pass
    seconds = draw.choice([0, 0.01])
    (tmp_path / "numbered_samples.py").write_text(NUMBERED.format(seconds=seconds))
    script = SCRIPT.format(workers=draw.randint(1, 3), number=number, ending=ENDINGS[ending])
    (tmp_path / "script.py").write_text(script)
    traces = Traces()
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, **traces.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a pipe that is kept would make this test wait for the others
        text=True,
        timeout=120,
        check=False,
    )
    assert "ready" in done.stdout
    assert (done.returncode == 0) == (ending == "in the usual way")
    assert traces.all_gone(), traces.processes()
