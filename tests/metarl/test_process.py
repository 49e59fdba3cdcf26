"""What a process sets once."""

import os
import subprocess
import sys

PROGRAM = """
import os
import torch
from metarl.process import settle
assert float(torch.tensor(1e-40) * 0.5) > 0
settle()
assert torch.get_num_threads() == 1 and float(torch.tensor(1e-40) * 0.5) == 0
from metarl.bilevel.recording import record
record(lambda x: x + 1, torch.ones(2))  # imports PyTorch's compiler, which looks for the folder
print(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
"""


def settled(**environment):
    kept = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=kept | environment
    )
    return done.stdout.strip()


def test_one_thread_no_denormals_and_a_folder_that_stays(tmp_path):
    assert settled(XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / "metarl" / "compiled")
    assert settled(TORCHINDUCTOR_CACHE_DIR=str(tmp_path)) == str(tmp_path)  # the user's own wish
