"""Paths, text and writing, with any file names and any refusal of the system."""

import codecs
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from mtlora_jax.errors import UserError
from mtlora_jax.io import files

# Characters with a special meaning in patterns, addresses, shells or terminals.
NAMES = [
    "lr[0.1]", "a*b", "a?b", "a**b", "a\\b", "a%41b", "a#b", "a b",
    "кошка", "[!x]", "-x", "a\nb", "{a}", "$HOME", "a:b", "x" * 255,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written_replaced_and_read(tmp_path, name):
    path = tmp_path / name
    for text in ("old", "новый\n"):
        files.write_text(path, text)
        assert files.read_text(path) == text
    assert os.listdir(tmp_path) == [name]
    path.unlink()
    if len(name) > 200:
        return
    for content in ("old", "new"):
        with files.atomic_folder(path) as folder:
            files.write_text(folder / "x", content)
        assert (path / "x").read_text() == content
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\nb", "a\nb"),
        (codecs.BOM_UTF8 + "кот".encode(), "кот"),
        ("кот\r\n猫".encode("utf-16"), "кот\r\n猫"),
        (codecs.BOM_UTF16_BE + "one".encode("utf-16-be"), "one"),
        ("train0\r\ntrain1\r\n".encode("utf-16-le"), "train0\r\ntrain1\r\n"),
        ("train0\n".encode("utf-16-be"), "train0\n"),
        ("x".encode("utf-32"), "x"),
        (b"", ""),
    ],
)
def test_text_of_any_unicode_encoding(tmp_path, data, text):
    (tmp_path / "a.txt").write_bytes(data)
    assert files.read_text(tmp_path / "a.txt") == text


def test_other_encodings_are_told(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt: is not UTF-8 text \(byte 3: .*\); save it as UTF-8"):
        files.read_text(path)
    assert files.read_text(path, lossy=True) == "caf\ufffd"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: os.mkfifo(path), "no ordinary file"),
        (lambda path: path.symlink_to("/dev/zero"), "no ordinary file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_not_waited_for(tmp_path, make, told):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=told):
        files.read_text(tmp_path / "x")


def test_json_that_is_none(tmp_path):
    for text, told in [("{", "is not valid JSON: "), ("[" * 100_000, "too deep"), ("1" * 5000, "is not valid JSON: ")]:
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=rf"a\.json {told}|a\.json is .*{told}"):
            files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~/runs/x", "{home}/runs/x"), ("~", "{home}"), ("a/~/b", "a/~/b"), ("./~x", "~x"), ("/a", "/a")],
)
def test_home_folders(tmp_path, monkeypatch, given, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(files.user_path(given)) == expected.format(home=tmp_path)


@pytest.mark.parametrize("given", ["", "a\0b", "~nobody_of_that_name/x"])
def test_paths_that_are_none(given):
    with pytest.raises(UserError):
        files.user_path(given)


BELOW_A_FILE = "{tmp}/file/below"


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("{tmp}/file", "is a file"),
        (BELOW_A_FILE, "is a file"),
        ("{tmp}/file/x/y", "is a file"),
        ("{tmp}/dangling", "link"),
        ("{tmp}/dangling/x", "link"),
        ("/proc/run", "cannot be written"),
        ("/proc/self/x/y", "cannot be written"),
        ("{tmp}/" + "x" * 300, "cannot be written"),
    ],
)
def test_folders_that_cannot_be_written(tmp_path, where, told):
    (tmp_path / "file").write_text("old")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    folder = pathlib.Path(where.format(tmp=tmp_path))
    with pytest.raises(UserError, match=told):
        files.check_writable(folder)
    with pytest.raises(UserError):
        files.write_text(folder / "x", "new")
    with pytest.raises(UserError), files.atomic_folder(folder):
        pass
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_check_leaves_nothing(tmp_path):
    files.check_writable(tmp_path / "a" / "b")
    files.check_writable(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_reader_sees_one_whole_save(tmp_path):
    """While a folder is replaced as fast as possible, no reader finds it missing, or with files of two saves."""
    folder, done = tmp_path / "best", threading.Event()

    def save(number: int) -> None:
        with files.atomic_folder(folder) as temporary:
            for name in ("config", "weights"):
                files.write_text(temporary / name, str(number))

    def go_on_saving() -> None:
        number = 0
        while not done.is_set():
            number += 1
            save(number)

    save(0)
    writer = threading.Thread(target=go_on_saving)
    writer.start()
    try:
        seen = [
            files.read_consistently(folder, lambda: [files.read_text(folder / name) for name in ("config", "weights")])
            for _ in range(2000)
        ]
    finally:
        done.set()
        writer.join()
    assert all(config == weights for config, weights in seen)
    assert len({config for config, _ in seen}) > 20  # it was replaced in between, again and again
    assert os.listdir(tmp_path) == ["best"]


def test_two_writers_leave_each_other_alone(tmp_path):
    """The unfinished files of an active writer are not the remains of a killed one."""
    with files.atomic_folder(tmp_path / "best") as first:
        files.write_text(first / "x", "first")
        with files.atomic_folder(tmp_path / "best") as second:
            files.write_text(second / "x", "second")
        assert (first / "x").read_text() == "first"
    assert (tmp_path / "best" / "x").read_text() == "first"
    assert os.listdir(tmp_path) == ["best"]


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "best").mkdir()
    (tmp_path / "best").symlink_to(tmp_path / "disk" / "best")
    for content in ("old", "new"):
        with files.atomic_folder(tmp_path / "best") as folder:
            files.write_text(folder / "x", content)
        assert (tmp_path / "disk" / "best" / "x").read_text() == content
    assert (tmp_path / "best").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["best", "disk"]
    assert os.listdir(tmp_path / "disk") == ["best"]


def test_without_the_exchange_of_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for content in ("old", "new"):
        with files.atomic_folder(tmp_path / "best") as folder:
            files.write_text(folder / "x", content)
    assert (tmp_path / "best" / "x").read_text() == "new"
    assert os.listdir(tmp_path) == ["best"]


def test_errors_of_a_reader_are_raised_once_it_was_not_disturbed(tmp_path):
    calls = []

    def read() -> None:
        calls.append(1)
        if len(calls) == 1:  # replaced while it is read
            with files.atomic_folder(tmp_path / "best") as folder:
                np.save(folder / "x", np.ones(2))
        raise UserError("no weights")

    (tmp_path / "best").mkdir()
    with pytest.raises(UserError, match="no weights"):
        files.read_consistently(tmp_path / "best", read)
    assert len(calls) == 2
    with pytest.raises(UserError, match="no weights"):
        files.read_consistently(tmp_path / "nowhere", read)


RAISES = "from mtlora_jax import cli; cli.run(lambda: {what})"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("open('/proc/nothing/x', 'w')", "/proc/nothing/x: No such file or directory"),
        ("open(b'/proc/nothing\\xff')", "/proc/nothing\\udcff: No such file or directory"),
        ("__import__('os').mkdir('/proc/x')", "/proc/x: No such file or directory"),
    ],
)
def test_what_the_system_says_is_one_line(what, told):
    done = subprocess.run([sys.executable, "-c", RAISES.format(what=what)], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (2, f"error: {told}\n", "")


def test_letters_that_a_terminal_lacks():
    """Python itself would end with a traceback."""
    program = "from mtlora_jax import cli; cli.run(lambda: print('кошка'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == r"\u043a\u043e\u0448\u043a\u0430" + "\n"


def test_nobody_reads_what_is_printed():
    program = "from mtlora_jax import cli; cli.run(lambda: [print('x' * 1000) for _ in range(1000)])"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
