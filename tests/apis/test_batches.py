"""Items made ahead in a thread, and put together by what they have in common."""

import threading

import pytest

from mmivit.apis.batches import HELD, ahead, batches


@pytest.mark.parametrize('most', [1, 3])
def test_items_are_made_ahead_in_order_and_no_further(most):
    made, threads = [], set()

    def items():
        for i in range(10):
            made.append(i)
            threads.add(threading.current_thread())
            yield i

    for i, item in enumerate(ahead(items(), most)):
        assert item == i
        assert len(made) <= i + 1 + most
    assert i == 9
    assert threading.main_thread() not in threads


def test_what_fails_in_the_thread_fails_where_it_is_asked_for():
    def items():
        yield 1
        raise OSError('no')

    made = ahead(items(), 2)
    assert next(made) == 1
    with pytest.raises(OSError, match='no'):
        next(made)


def test_a_batch_is_of_one_key_in_order():
    found = list(batches('aBaaBbcA', 2, str.islower))
    assert found == [['a', 'a'], ['B', 'B'], ['a', 'b'], ['c'], ['A']]


def test_few_items_wait_for_others_of_their_key():
    taken = 0

    def items():
        nonlocal taken
        for i in range(40):
            taken += 1
            yield i

    given = 0
    for batch in batches(items(), 4, lambda i: i):
        given += len(batch)
        assert taken - given < HELD * 4
    assert given == 40
