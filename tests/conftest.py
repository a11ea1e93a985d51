"""What every test of every tier relies on."""

from __future__ import annotations

import signal

import pytest

pytest.register_assert_rewrite("tests.convert_oracle")

# a script ignores SIGINT in its background jobs, and what tests start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
