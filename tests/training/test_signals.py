import signal
import subprocess
import sys
import time

from deeplab_jax.training.signals import catch_stop_signals

PROGRAM = """
import signal, sys, time
from deeplab_jax.training.signals import catch_stop_signals
with catch_stop_signals() as received:
    print("ready", flush=True)
    deadline = time.monotonic() + 20
    while len(received) < int(sys.argv[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    print([signal.Signals(number).name for number in received], flush=True)
"""


def send(count, *numbers, launcher=()):
    """Run PROGRAM until it has received `count` signals. Return its exit code and its last output."""
    command = [*launcher, sys.executable, "-c", PROGRAM, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)  # signals that arrive together are delivered once
        output, error = process.communicate(timeout=60)
    return process.returncode, output.strip(), error


def test_each_signal_is_caught_and_announced():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        code, output, error = send(1, number)
        assert (code, output) == (0, f"['{number.name}']")
        assert error.count("Stopping after this step") == 1
        assert ("Press Ctrl-C again" in error) == (number == signal.SIGINT)


def test_repeated_signals_are_harmless_except_for_a_second_interrupt():
    code, output, _ = send(3, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP)
    assert (code, output) == (0, "['SIGHUP', 'SIGTERM', 'SIGHUP']")
    # LSF sends these at the end of a job's run time.
    code, output, error = send(3, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM)
    assert (code, output) == (0, "['SIGUSR2', 'SIGINT', 'SIGTERM']")
    assert error.count("Press Ctrl-C again") == 1
    code, output, _ = send(9, signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    assert (code, output) == (-signal.SIGINT, "")


def test_a_second_interrupt_does_not_end_an_interactive_session():
    session = """
import os, signal, sys, time
from deeplab_jax.training.signals import catch_stop_signals
sys.ps1 = ">>> "
try:
    with catch_stop_signals() as received:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
except KeyboardInterrupt:
    print(len(received), signal.getsignal(signal.SIGINT) == signal.default_int_handler)
"""
    result = subprocess.run([sys.executable, "-c", session], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "1 True\n")


def test_a_signal_that_nohup_ignores_stays_ignored():
    code, output, error = send(1, signal.SIGHUP, signal.SIGTERM, launcher=("nohup",))
    assert (code, output) == (0, "['SIGTERM']")
    assert error.count("Stopping") == 1


def test_an_interrupt_that_a_background_program_ignores_stays_ignored():
    ignoring = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    code, output, _ = send(2, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, launcher=ignoring)
    assert (code, output) == (0, "['SIGTERM', 'SIGTERM']")


def test_the_previous_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with catch_stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
