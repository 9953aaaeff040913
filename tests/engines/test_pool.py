"""The pool's rules, with workers that are no processes: order, look-ahead, replacement, ends."""

import threading
import time

import pytest

from fedit.engines.pool import AHEAD, Keys, Lost, Pool, Reply, Request, WorkerDied


class Fake:
    """Answers a request with its number; ``at`` may do anything first."""

    def __init__(self, at=lambda worker, number: None):
        self.at = at
        self.asked = []
        self.begun = []
        self.killed = threading.Event()
        self.stopped = 0

    def begin(self, header):
        self.begun.append(header)

    def ask(self, request, keys, tell):
        number = request.header["number"]
        self.asked.append(number)
        tell({"number": number})
        self.at(self, number)
        return Reply({"number": number}, {})

    def kill(self):
        self.killed.set()

    def stop(self):
        self.stopped += 1


def requests(count):
    return [Request({"number": number}) for number in range(count)]


def test_answers_come_in_the_order_of_the_requests_whoever_is_faster():
    slow_even = lambda worker, number: time.sleep(0.01 * (number % 3 == 0))  # noqa: E731
    pool = Pool([Fake(slow_even) for _ in range(3)])
    told = []
    found = [
        answer.header["number"] for answer in pool.run(requests(20), lambda index, e: told.append((index, e)))
    ]
    assert found == list(range(20))
    assert sorted(told, key=lambda item: item[0]) == [(n, {"number": n}) for n in range(20)]


def test_work_goes_to_whoever_is_free():
    held = threading.Event()
    stuck, free = Fake(), Fake()
    stuck.at = lambda worker, number: held.wait(5)
    free.at = lambda worker, number: held.set() if len(free.asked) == 3 else None
    assert len(list(Pool([stuck, free]).run(requests(4)))) == 4
    assert (len(stuck.asked), len(free.asked)) == (1, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_more_is_begun_than_the_look_ahead_allows(count):
    workers = [Fake() for _ in range(count)]
    answers = Pool(workers).run(requests(50))
    for taken in range(1, 51):
        next(answers)
        time.sleep(0.002)  # time enough to run ahead too far
        # the answer that was just taken still holds its place until the next is asked for
        assert sum(len(worker.asked) for worker in workers) <= taken - 1 + AHEAD * count
    assert list(answers) == []


def test_a_request_is_tried_twice_and_the_rest_goes_on():
    def die(worker, number):
        if number == 2 or (number == 4 and worker.asked.count(4) == 1):
            raise WorkerDied("killed")

    worker = Fake(die)
    found = list(Pool([worker]).run(requests(6)))
    assert [type(answer) for answer in found] == [Reply, Reply, Lost, Reply, Reply, Reply]
    assert found[2] == Lost("killed")
    assert worker.asked == [0, 1, 2, 2, 3, 4, 4, 5]


def test_an_error_ends_the_pass_and_the_workers_that_nobody_waits_for():
    both = threading.Barrier(2)

    def work(worker, number):
        both.wait(5)
        if number == 0:
            raise ValueError("bad")
        assert worker.killed.wait(5)
        raise WorkerDied("killed")

    workers = [Fake(work), Fake(work)]
    with pytest.raises(ValueError, match="bad"):
        list(Pool(workers).run(requests(9)))
    assert sorted((worker.asked, worker.stopped) for worker in workers) == [([0], 0), ([1], 1)]


def test_a_pass_that_is_left_ends_its_workers_and_the_pool_can_be_used_again():
    begun = threading.Event()

    def work(worker, number):
        if number == 1 and not worker.stopped:
            begun.set()
            assert worker.killed.wait(5)
            raise WorkerDied("killed")

    worker = Fake(work)
    pool = Pool([worker])
    answers = pool.run(requests(9))
    assert next(answers).header == {"number": 0}
    assert begun.wait(5)
    answers.close()
    assert (worker.asked, worker.stopped) == ([0, 1], 1)
    assert pool.ask(Request({"number": 1})).header == {"number": 1}


def test_errors_of_the_listener_end_the_pass():
    def listen(index, event):
        raise KeyboardInterrupt

    worker = Fake()
    pool = Pool([worker])
    with pytest.raises(KeyboardInterrupt):
        list(pool.run(requests(30), listen))
    assert len(worker.asked) <= AHEAD
    assert pool.ask(Request({"number": 1})).header == {"number": 1}


def test_surplus_workers_are_stopped_and_the_others_begin():
    workers = [Fake() for _ in range(3)]
    with Pool(workers) as pool:
        pool.begin({"a": 1}, 2)
        assert len(pool) == 2
        assert [worker.begun for worker in workers] == [[{"a": 1}], [{"a": 1}], []]
        assert [worker.stopped for worker in workers] == [0, 0, 1]
    assert all(worker.stopped for worker in workers)


def test_nothing_to_do_is_done_at_once():
    assert list(Pool([Fake()]).run([])) == []


def test_keys_name_contents():
    import torch

    keys = Keys()
    one = {"a": torch.ones(2), "b": torch.zeros(2, dtype=torch.bfloat16)}
    assert keys.of(one) == keys.of(dict(one)) == Keys().of({n: t.clone() for n, t in one.items()})
    others = [
        {"a": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.zeros(2, dtype=torch.float16)},
        {"a": torch.ones(1, 2), "b": one["b"]},
        {"a": torch.ones(2) * 2, "b": one["b"]},
        {"c": one["a"], "b": one["b"]},
        {"b": one["b"], "a": one["a"]},  # sums over all tensors depend on their order
    ]
    assert len({keys.of(tensors) for tensors in [one, *others]}) == 7
