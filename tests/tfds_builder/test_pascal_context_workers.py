"""Workers that die, and what the main process reports."""

import os
import signal

import pytest
from raw_dummies import PASCAL, TRAIN

from mtlora_jax.errors import UserError
from tfds_pascal_context import checks, convert, verify, workers
from tfds_pascal_context.pascal_context import PascalRaw

IDS = [*TRAIN, "dummy_05"]


def doubled(number):
    return 2 * number


def killed(number, how):
    workers.note(f"file {number}")
    if number == 3:
        os.kill(os.getpid(), how)
    return number


def wrong(error):
    raise error


class Crashing(PascalRaw):
    """Its second image crashes the reader, as a malicious file may."""

    def label(self, task, image_id, size):
        label = super().label(task, image_id, size)
        if image_id == "dummy_02":
            os.kill(os.getpid(), signal.SIGSEGV)
        return label


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order(count):
    assert list(workers.in_parallel(doubled, [(n,) for n in range(40)], count)) == [2 * n for n in range(40)]
    assert list(workers.in_parallel(doubled, [], count)) == []


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (signal.SIGSEGV, r"^file 3: crashes its reader \(SIGSEGV\); it is damaged or malicious"),
        (signal.SIGABRT, r"^file 3: crashes its reader \(SIGABRT\)"),
        (
            signal.SIGKILL,
            r"^file 3: while this file was read, one of \d worker processes was killed, .* fewer --workers",
        ),
    ],
)
def test_the_file_that_was_read_is_named(count, how, message):
    seen = []
    with pytest.raises(UserError, match=message):
        seen.extend(workers.in_parallel(killed, [(n, how) for n in range(6)], count))
    assert seen == [0, 1, 2]  # what came before is not lost


@pytest.mark.parametrize("count", [1, 2])
def test_the_others_go_on_where_that_is_wanted(count):
    results = list(workers.in_parallel(killed, [(n, signal.SIGSEGV) for n in range(6)], count, str))
    assert results[:3] + results[4:] == [0, 1, 2, 4, 5]
    assert results[3].startswith("file 3: ")


@pytest.mark.parametrize(
    ("error", "message"), [(UserError("x: wrong"), "^x: wrong$"), (MemoryError(), "needs more memory than there is")]
)
def test_what_a_worker_raises_for_the_user(error, message):
    with pytest.raises(UserError, match=message):
        list(workers.in_parallel(wrong, [(error,)], 1))


def test_a_mistake_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError) as caught:
        list(workers.in_parallel(wrong, [(ZeroDivisionError("by zero"),)], 1))
    assert "in wrong" in caught.value.__notes__[0]


@pytest.mark.parametrize("count", [1, 2])
def test_conversion_and_verification_name_the_file(tmp_path, count):
    path = PASCAL / "sal_distill/dummy_02.png"
    converted = convert.convert_all(Crashing(PASCAL), IDS, ("sal",), tmp_path, count)
    with pytest.raises(UserError, match=rf"^{path}: crashes its reader \(SIGSEGV\)"):
        list(converted)
    assert (tmp_path / "dummy_01.zip").is_file()
    assert not list(tmp_path.glob("*.tmp"))
    calls = [(Crashing(PASCAL), image_id, ("sal",)) for image_id in IDS]
    report = verify._report(len(IDS), ("sal",), [], checks.raw_problems, calls, count)
    assert (report.whole, report.usable) == (4, {"sal": 4})
    assert [line.split(":")[0] for line in report.problems] == [str(path)]
