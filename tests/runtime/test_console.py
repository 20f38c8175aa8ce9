import errno
import io
import os
import subprocess
import sys

import pytest

from deeplab_jax.runtime import console

PROGRAM = """
from deeplab_jax.commands.exit import run_or_exit
from deeplab_jax.runtime.console import make_console
def program():
    console = make_console()
    for i in range(20000):
        console.print(f"line {i}")
    open("done", "w").close()
run_or_exit(program)
"""


def test_a_program_continues_when_nobody_reads_its_output(tmp_path):
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        os.close(write)
        os.read(read, 10)
        os.close(read)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert (tmp_path / "done").exists()


def test_a_program_without_a_standard_output_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    output = console.make_console()
    output.print("line")
    assert output.quiet


@pytest.mark.slow
def test_a_program_continues_when_its_output_is_on_a_full_disk(tmp_path):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_lines_that_cannot_be_written_are_dropped(code, monkeypatch):
    class Terminal(io.StringIO):
        broken = False

        def write(self, text):
            if self.broken:
                raise OSError(code, os.strerror(code))
            return super().write(text)

    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    out = console.make_console()
    out.print("one")
    stream.broken = True
    out.print("two")
    stream.broken = False
    out.print("three")
    assert stream.getvalue() == "one\nthree\n"


def test_names_are_printed_as_they_are(capsys):
    name = "runs/:car:/fe80::a:b:c"  # Rich would replace the names of emojis
    console.make_console().print(name, markup=False)
    assert capsys.readouterr().out == f"{name}\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "\\udcff ö\n"),
        ("ascii", "\\udcff \\xf6\n"),
        ("koi8-r", "\\udcff \\xf6\n"),  # Python's errors only call it a charmap
    ],
)
def test_characters_that_the_terminal_lacks_are_escaped(encoding, shown, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
    console.make_console().print("\udcff ö")
    assert buffer.getvalue().decode(encoding) == shown
