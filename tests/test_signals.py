"""Ctrl-C and SIGTERM are a request to stop; the second one stops at once."""

import os
import signal
import threading

import pytest

from minillm.support.signals import catch_signals


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_a_request(number):
    before, seen = signal.getsignal(number), []
    with catch_signals(seen.append):
        press(number)
    assert seen == [number.name]
    assert signal.getsignal(number) == before


def test_the_second_ctrl_c_kills():
    before, seen = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), catch_signals(seen.append):
        press()
        assert seen == ["SIGINT"]
        press()
    assert signal.getsignal(signal.SIGINT) == before


def test_an_error_inside_puts_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), catch_signals(print):
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_thread_nothing_is_caught_and_nothing_fails():
    before, done = signal.getsignal(signal.SIGINT), []

    def work():
        with catch_signals(print):
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [before]
