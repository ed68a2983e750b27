"""Batches drawn by a thread, so that a GPU never waits for the next one."""

from concurrent.futures import ThreadPoolExecutor

import torch


class Prefetch:
    """Batches that a thread draws one ahead, pinned if they are to go to a GPU.

    What is handed out and what `state_dict` says are as without it.
    """

    def __init__(self, batches, pin: bool = False):
        self.batches, self.pin, self.next = batches, pin, None
        self.pool = ThreadPoolExecutor(1)
        self.note()

    def note(self) -> None:
        """Remember what the source says of itself after the last batch."""
        self.documents, self.epoch = self.batches.documents, self.batches.epoch
        self.state = self.batches.state_dict()

    def draw(self) -> dict[str, torch.Tensor]:
        batch = next(self.batches)
        return {k: x.pin_memory() for k, x in batch.items()} if self.pin else batch

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = self.next.result() if self.next else self.draw()
        self.note()
        self.next = self.pool.submit(self.draw)
        return batch

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.next:
            self.next.result()  # the thread must not draw from the new place
        self.next = None
        self.batches.load_state_dict(state)
        self.note()
