"""Catch the signals that ask a run to stop, so that it can finish its current step and save."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

# SIGHUP comes from a closed terminal or a lost connection, and SIGUSR1 from SLURM's `--signal=USR1@120`.
# LSF and Grid Engine announce the end of a job with SIGUSR2, and the system that of its CPU time with SIGXCPU.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # Windows lacks all but the first two
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_MESSAGE = "Stopping after this step, or after this batch of an evaluation."


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Catch SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU in the `with` block.

    A second SIGINT ends the process immediately. In a notebook or another interactive session, it raises KeyboardInterrupt
    instead, so that the session's variables are kept. Other signals can be repeated, because shells and schedulers often send
    several. Signals that are ignored, such as SIGHUP under `nohup`, stay ignored. Outside the main thread, Python cannot set
    signal handlers, so all signals keep their effect.

    Yields:
      A list of the signals received so far.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, _: object) -> None:
        if number not in received and (not received or number == signal.SIGINT):
            # Python's streams cannot be used here, because the signal might have interrupted one of their writes.
            with contextlib.suppress(OSError):
                advice = " Press Ctrl-C again to stop without saving." if number == signal.SIGINT else ""
                os.write(2, f"\n{_MESSAGE}{advice}\n".encode())
        received.append(number)
        if number == signal.SIGINT:
            # An interrupt in Python only takes effect after a compilation, but ending a session would cost its variables.
            signal.signal(signal.SIGINT, previous[signal.SIGINT] if hasattr(sys, "ps1") else signal.SIG_DFL)

    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    caught = [number for number in STOP_SIGNALS if previous[number] not in (signal.SIG_IGN, None)]  # None: a handler in C
    for number in caught:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in caught:
            signal.signal(number, previous[number])
