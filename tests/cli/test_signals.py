from __future__ import annotations

import os
import signal

import pytest

from prunegate.cli.signals import stop_on_signals


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted_and_a_sigint_after_it_leaves_at_once(
    first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert stop() == 0
        os.kill(os.getpid(), first)
        assert stop() == first
        assert "press Ctrl-C again to exit at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
