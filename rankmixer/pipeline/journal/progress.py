"""The progress line: one live line on a terminal, plain lines now and then when stderr is a pipe or a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

LIVE_SECONDS = 0.1  # a terminal's line is redrawn at most this often

# The values of a step that the line shows, in this order; others are left to the log.
SHOWN: dict[str, Callable[[Any], str]] = {
    "epoch": lambda epoch: f"epoch {epoch}",
    "loss": lambda loss: f"loss {loss:.4f}",
    "examples_per_second": lambda rate: f"{rate:,.0f} examples/s",
    "data_wait_share": lambda share: f"data wait {share:.0%}",
    "mfu": lambda share: f"MFU {share:.0%}",
    "rss_bytes": lambda size: f"RSS {size / 2**30:.1f} GiB",
    "cuda_bytes": lambda size: f"CUDA {size / 2**30:.1f} GiB",
    "lr_sparse": lambda rate: f"lr {rate:.1e} sparse",
    "lr_dense": lambda rate: f"{rate:.1e} dense",
}


class ProgressLine:
    """Shows training steps as one line on stderr, and messages above it. A stderr that fails is ignored.

    `seconds` is the time between plain lines.
    """

    def __init__(self, total_steps: int | None, seconds: float) -> None:
        self.total_steps = total_steps
        self.seconds = seconds
        self._live: Live | None = None
        self._text = ""
        self._shown_text = ""
        self._shown_at = -float("inf")
        self._origin: tuple[int, float] | None = None
        console = Console(stderr=True)
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            # What others print goes above the line; a stdout that is a file or a pipe keeps what is its own.
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            self._live.start()
            console.show_cursor(True)  # else a killed run leaves the terminal without one

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Show a training step, unless the line was renewed a moment ago."""
        self._text = self._format(step, values)
        if time.monotonic() - self._shown_at >= (self.seconds if self._live is None else LIVE_SECONDS):
            self._show()

    def say(self, message: str) -> None:
        """Print a message now: above the live line, or after a plain line of the last step."""
        with suppress(OSError):
            if self._live is None:
                if self._text != self._shown_text:
                    self._show()
                print(message, file=sys.stderr, flush=True)
            else:
                style = "yellow" if message.startswith("warning") else ""
                self._live.console.print(Text(message, style), soft_wrap=True)

    def close(self) -> None:
        """Leave the last step on the screen."""
        if self._text != self._shown_text:
            self._show()
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def _show(self) -> None:
        self._shown_text, self._shown_at = self._text, time.monotonic()
        if self._live is None:
            self.say(self._text)
        else:
            with suppress(OSError):
                self._live.update(Text(self._text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _format(self, step: int, values: dict[str, Any]) -> str:
        parts = [f"step {step:,}" if self.total_steps is None else f"step {step:,}/{self.total_steps:,}"]
        now = time.monotonic()
        first_step, start = self._origin = self._origin or (step, now)
        if self.total_steps is not None and step > first_step:
            seconds = (now - start) * (self.total_steps - step) / (step - first_step)
            parts.append(f"ETA {timedelta(seconds=round(seconds))}")
        parts += [show(values[name]) for name, show in SHOWN.items() if values.get(name) is not None]
        return "  ".join(parts)
