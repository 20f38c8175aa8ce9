import errno
import io
import os
import subprocess
import sys
import tempfile

import pytest
from PIL import Image

from deeplab_jax.commands.exit import run_or_exit
from deeplab_jax.commands.main import parse
from deeplab_jax.errors import BucketError, BucketOutageError, ConfigError


def run_code(code, **environment):
    environ = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_this_machine_lacks_is_one_line(platform):
    code = "import jax; from deeplab_jax.commands.exit import run_or_exit; run_or_exit(lambda: jax.numpy.zeros(1))"
    result = run_code(code, JAX_PLATFORMS=platform)
    if platform == "cuda" and result.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: `JAX_PLATFORMS` (='{platform}') cannot be used (")
    assert result.stderr.count("\n") == 1


def test_each_variable_that_names_a_platform_is_in_the_message():
    code = "import jax; from deeplab_jax.commands.exit import run_or_exit; run_or_exit(lambda: jax.numpy.zeros(1))"
    result = run_code(code, JAX_PLATFORMS="cpu", JAX_PLATFORM_NAME="nonsense")
    assert result.returncode == 2
    assert result.stderr.startswith("error: `JAX_PLATFORMS` (='cpu') and `JAX_PLATFORM_NAME` (='nonsense') cannot be used (")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "value"), [("JAX_DISABLE_JIT", "maybe"), ("JAX_NUM_CPU_DEVICES", "two")])
def test_a_setting_that_jax_refuses_is_one_line(name, value):
    code = "from deeplab_jax.commands.exit import run_or_exit; run_or_exit(lambda: __import__('jax'))"
    result = run_code(code, **{name: value})
    assert result.returncode == 2
    assert result.stderr == f"error: `{name}` (='{value}') is refused by JAX. Correct or unset it.\n"


def test_damaged_metadata_of_an_image_print_nothing(tmp_path):
    exif = Image.Exif()
    exif[271] = "the name of a camera"
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", exif=exif.tobytes()[:-9])
    program = "read_orientation(open('photo.jpg', 'rb'))"
    code = f"from deeplab_jax.data.decode import *; from deeplab_jax.commands.exit import *; run_or_exit(lambda: {program})"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environ)
    assert result.stdout + result.stderr == ""


def test_running_out_of_memory_is_one_line(capsys):
    def program():
        raise MemoryError("Unable to allocate 2.00 GiB for an array")

    with pytest.raises(SystemExit) as stop:
        run_or_exit(program)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: This machine ran out of memory allocating 2.0 GiB. Use smaller batches or images.")
    assert error.count("\n") == 1


def test_control_characters_in_a_message_are_escaped(capsys):
    def program():
        raise ConfigError("`a\nb\x1b[31mé.pth` cannot be read.")

    with pytest.raises(SystemExit):
        run_or_exit(program)
    assert capsys.readouterr().err == "error: `a\\nb\\x1b[31mé.pth` cannot be read.\n"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", r"\udcff é"), ("ascii", r"\udcff \xe9"), ("koi8-r", r"\udcff \xe9")])
def test_characters_that_the_terminal_lacks_are_escaped(encoding, shown):
    code = r"from deeplab_jax.commands.exit import run_or_exit; run_or_exit(lambda: print('\udcff \xe9'))"
    result = run_code(code, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{shown}\n", "")


def test_a_command_without_an_output_continues():
    code = (
        "from deeplab_jax.commands.exit import run_or_exit; from deeplab_jax.runtime.console import make_console; "
        "run_or_exit(lambda: make_console().print('a'))"
    )
    result = subprocess.run(f'{sys.executable} -c "{code}" >&-', shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_deleted_current_folder_is_one_line(tmp_path):
    folder = tmp_path / "deleted"
    folder.mkdir()
    code = f"import os; from deeplab_jax.commands.exit import run_or_exit; os.chdir({str(folder)!r}); os.rmdir({str(folder)!r})"
    result = run_code(f"{code}; run_or_exit(lambda: os.path.abspath('runs'))")
    assert result.returncode == 2
    assert result.stderr == "error: The current folder was deleted. Change to one that exists, and try again.\n"


def test_a_machine_without_a_folder_for_temporary_files_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/missing"])  # as if the others were full or read-only
    with pytest.raises(SystemExit):
        run_or_exit(tempfile.gettempdir)
    assert capsys.readouterr().err == "error: No folder for temporary files can be written. Set TMPDIR to one that can.\n"


def test_closed_streams_become_the_null_device():
    code = (
        "import os, sys; from deeplab_jax.commands.exit import run_or_exit; from deeplab_jax.errors import ConfigError\n"
        "def program():\n    print(1); print(2, file=sys.stderr); sys.exit(os.dup(1))\n"
        "run_or_exit(program)"
    )
    result = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$0" <&- >&- 2>&-', code], check=False)
    assert result.returncode == 3  # the first number that is free, after those of the three streams


def test_an_output_on_a_full_disk_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run_or_exit(lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"text"))
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("error: The output cannot be written, because the disk is full. Free some disk space.\n")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_or_exit(lambda: 1 / 0)


@pytest.mark.parametrize(("error", "code"), [(BucketError("refused"), 2), (BucketOutageError("silent"), 3)])
def test_an_outage_has_its_own_exit_code(error, code, capsys):
    def program():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_or_exit(program)
    assert stop.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(
    ("module", "command", "arguments"),
    [
        ("weights.transfer", "import_weights", ["weights", "import", "x.pth", "--out", "o"]),
        ("weights.transfer", "export_weights", ["weights", "export", "r", "--to", "timm", "--out", "o.pth"]),
        ("export.export", "export", ["export", "--checkpoint", "r", "--format", "onnx", "--out", "o.onnx"]),
    ],
)
def test_imports_and_exports_continue_on_a_full_disk(monkeypatch, tmp_path, module, command, arguments):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    done = []

    def work(*positional, say=None, **_):
        (say or positional[-1])("line")
        done.append(True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"deeplab_jax.{module}.{command}", work)
    run = parse(arguments)
    monkeypatch.setattr(sys, "stdout", Full())
    run()
    assert done
