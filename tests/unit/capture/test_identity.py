"""Positions of one history of a source are refused in another."""

from __future__ import annotations

import pytest

from cdc_runner.capture.identity import ServerHistory, ServerIdentity, check_same_history, parse_history
from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.position import Position

HISTORY = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000060\tbefore 2026-01-01 00:00:00+00\n"


def test_a_history_file_tells_where_timelines_ended() -> None:
    assert parse_history(HISTORY) == {1: 0x3000000, 2: 0x5000060}


def test_an_identity_has_a_text_form() -> None:
    identity = ServerIdentity("7123456789012345678", 3, 0x5000060)
    assert ServerIdentity.parse(str(identity)) == identity


@pytest.mark.parametrize(
    ("known", "lsn", "refused"),
    [
        (("a", 3, 0x5000060), 0x9000000, None),
        (("a", 2, 0x3000000), 0x5000060, None),
        (("a", 2, 0x3000000), 0x5000061, "left timeline 2 at 0/5000060"),
        (("a", 1, 0), 0x4000000, "left timeline 1 at 0/3000000"),
        (("a", 4, 0x6000000), 0x1000000, "does not come from timeline 4"),
        (("a", 3, 0x4000000), 0x1000000, "does not come from timeline 3"),
        (("a", 2, 0x2000000), 0x1000000, "does not come from timeline 2"),
        (("b", 3, 0x5000060), 0x1000000, "another server"),
    ],
)
def test_positions_beyond_the_end_of_their_timeline_are_refused(
    known: tuple[str, int, int], lsn: int, refused: str | None
) -> None:
    now = ServerHistory(ServerIdentity("a", 3, 0x5000060), parse_history(HISTORY))
    positions = [Position(0x100), Position(lsn)]
    if refused is None:
        check_same_history(ServerIdentity(*known), now, positions)
        return
    with pytest.raises(RosettaError, match=refused) as raised:
        check_same_history(ServerIdentity(*known), now, positions)
    assert raised.value.kind is ErrorKind.SLOT_AHEAD
