"""Batches drawn one ahead are those that were drawn without it, and so are states."""

import threading

import numpy as np
import pytest
import torch

from minillm.pretraining import Batches
from minillm.support.prefetch import Prefetch


class Documents:
    lengths = [3, 5, 2, 7, 4, 6, 1] * 5

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        ids = np.arange(self.lengths[i]) + 100 * i
        return ids, ids + 1


def make():
    return Batches(Documents(), rows=2, context=8)


def test_the_same_batches_states_documents_and_epochs():
    plain, ahead = make(), Prefetch(make())
    assert plain.state_dict() == ahead.state_dict()
    for _ in range(20):
        expected, found = next(plain), next(ahead)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert plain.state_dict() == ahead.state_dict()
        assert (plain.documents, plain.epoch) == (ahead.documents, ahead.epoch)


def test_a_state_put_back_drops_what_was_drawn():
    ahead = Prefetch(make())
    next(ahead)
    state, second = ahead.state_dict(), next(ahead)
    next(ahead)
    ahead.load_state_dict(state)
    assert ahead.state_dict() == state
    assert torch.equal(next(ahead)["input_ids"], second["input_ids"])


def test_the_next_batch_is_drawn_by_a_thread_before_it_is_asked_for():
    drawn, threads = threading.Event(), []

    class Source:
        documents, epoch, number = [], 0.0, 0

        def __next__(self):
            self.number += 1
            threads.append(threading.current_thread())
            if self.number == 2:
                drawn.set()
            return {"x": torch.tensor(self.number)}

        def state_dict(self):
            return {"number": self.number}

    ahead = Prefetch(Source())
    assert next(ahead)["x"] == 1
    assert drawn.wait(10) and threads[1] is not threading.main_thread()
    assert ahead.state_dict() == {"number": 1}


def test_an_error_of_the_source_reaches_the_caller():
    class Source:
        documents, epoch, number = [], 0.0, 0

        def __next__(self):
            self.number += 1
            if self.number == 2:
                raise OSError("the disk is gone")
            return {}

        def state_dict(self):
            return {}

    ahead = Prefetch(Source())
    next(ahead)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
