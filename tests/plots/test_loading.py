"""Ctrl-C while matplotlib is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys
from fampe_fast.plots.colours import colour_table
from fampe_fast.plots.canvas import new_figure

class AtAnExtension:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib.ft2font":
            signal.raise_signal(getattr(signal, sys.argv[2]))

# Also for SIGINT, which a shell's background jobs, and with them these tests, ignore.
signal.signal(getattr(signal, sys.argv[2]), signal.default_int_handler)
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
sys.meta_path.insert(0, AtAnExtension())
draw = {"colours": lambda: colour_table(False), "figure": lambda: new_figure(1, 1, 100)}[sys.argv[1]]
try:
    draw()
except KeyboardInterrupt:
    assert "matplotlib.figure" in sys.modules
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    draw()
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("first", ["colours", "figure"])
def test_ctrl_c_waits_until_matplotlib_is_there(first: str, signal: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, first, signal], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
