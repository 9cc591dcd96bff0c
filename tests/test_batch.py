"""Many pictures at a time give what they give one by one, in their order, and stop in good order."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

import hvcompress
from hvcompress.batch import check_jobs, cores, in_order
from hvcompress.cli import main
from hvcompress.errors import InputError, UsageError


@pytest.fixture
def pictures():
    generator = np.random.Generator(np.random.PCG64(3))
    return [generator.integers(0, 256, (20 + 5 * n, 70 - 7 * n, 3), dtype=np.uint8) for n in range(6)]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_come_in_order_and_few_are_taken_ahead(jobs):
    taken = 0

    def items():
        nonlocal taken
        for number in range(12):
            taken += 1
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    for number, done in enumerate(in_order(work, items(), jobs)):
        assert done.result() == number * number
        assert taken <= number + 2 * jobs


def test_jobs_really_overlap():
    both = threading.Barrier(2, timeout=20)  # broken, hence an error, unless two are inside at the same time
    assert all(done.result() >= 0 for done in in_order(lambda _: both.wait(), range(4), 2))


def test_threads_are_shared_out_and_given_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        running = in_order(lambda _: torch.get_num_threads(), range(4), 3)
        assert next(running).result() == 2
        running.close()
        assert torch.get_num_threads() == 6
        assert [done.result() for done in in_order(lambda _: torch.get_num_threads(), range(2), 9)] == [1, 1]
        assert [done.result() for done in in_order(lambda _: torch.get_num_threads(), range(2), 1)] == [6, 6]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_is_raised_in_its_turn_and_ends_it(jobs):
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        return 1 // (number - 2)

    outcomes = in_order(work, range(100), jobs)
    assert [next(outcomes).result() for _ in range(2)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(outcomes).result()
    outcomes.close()
    assert len(begun) < 20


def test_batches_are_what_single_calls_are(tiny_folder, pictures):
    alone = [hvcompress.encode(picture, 40, model=tiny_folder) for picture in pictures]
    together = list(hvcompress.encode_batch(iter(pictures), 40, jobs=3, model=tiny_folder))
    assert together == alone
    decoded = hvcompress.decode_batch(together, jobs=2, model=tiny_folder)
    for image, data in zip(decoded, alone, strict=True):
        assert np.array_equal(image, hvcompress.decode(data, model=tiny_folder))


def test_parts_of_many_files(tiny_folder, pictures):
    files = [hvcompress.encode(picture, 40, model=tiny_folder) for picture in pictures[:2]]
    decoded = hvcompress.decode_batch(files, layers=4, crop=(3, 2, 9, 7), model=tiny_folder)
    for image, data in zip(decoded, files, strict=True):
        assert np.array_equal(image, hvcompress.decode(data, layers=4, crop=(3, 2, 9, 7), model=tiny_folder))


@pytest.mark.parametrize("batch", [hvcompress.encode_batch, hvcompress.decode_batch])
@pytest.mark.parametrize("one", ["photo.png", b"the bytes of one file"])
def test_one_file_is_no_batch(batch, one):
    with pytest.raises(UsageError, match="not a single one"):
        batch(one)


def test_a_bad_picture_of_a_batch(tiny_folder, pictures):
    files = hvcompress.encode_batch([pictures[0], b"no picture", pictures[1]], jobs=2, model=tiny_folder)
    assert next(files)
    with pytest.raises(InputError):
        next(files)


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True, "2"])
def test_odd_numbers_of_jobs_are_refused_at_once(jobs):
    with pytest.raises(UsageError):
        hvcompress.encode_batch([], jobs=jobs)


def test_one_job_per_core():
    assert check_jobs(None) == cores() >= 1


@pytest.mark.parametrize("jobs", ["1", "3", "0"])
def test_command_line_does_all_but_the_bad_file(tiny_folder, pictures, tmp_path, capsys, jobs):
    from PIL import Image

    names = [str(tmp_path / f"{n}.png") for n in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(name)
    (tmp_path / "2.png").write_bytes(b"no picture")
    code = main(["encode", "-j", jobs, "--model", str(tiny_folder), *names])
    shown = capsys.readouterr()
    assert code == InputError.exit_code
    assert len(shown.err.splitlines()) == 1 and "2.png" in shown.err
    lines = shown.out.splitlines()
    assert [line.split()[1] for line in lines] == [names[n] for n in (0, 1, 3, 4, 5)]
    assert sorted(path.name for path in tmp_path.glob("*.hvci")) == [f"{n}.hvci" for n in (0, 1, 3, 4, 5)]


def test_command_line_refuses_odd_jobs(capsys):
    assert main(["decode", "-j", "-2", "x.hvci"]) == UsageError.exit_code
    assert main(["decode", "-j", "many", "x.hvci"]) == UsageError.exit_code
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_error_of_the_items_comes_after_what_they_gave(jobs):
    def items():
        yield from range(5)
        raise KeyError("items")

    made = []
    with pytest.raises(KeyError, match="items"):
        for done in in_order(lambda number: number * number, items(), jobs):
            made.append(done.result())
    assert made == [0, 1, 4, 9, 16]
