"""What a process sets once."""

import subprocess
import sys

PROGRAM = """
import torch
from metarl.process import settle
assert float(torch.tensor(1e-40) * 0.5) > 0
settle()
assert torch.get_num_threads() == 1 and float(torch.tensor(1e-40) * 0.5) == 0
"""


def test_one_thread_and_no_denormals():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
