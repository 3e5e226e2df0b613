"""Everything that talks to one account on behalf of one pipeline and destination."""

from __future__ import annotations

from cdc_runner.destinations.snowflake.auth import KeyPairTokens
from cdc_runner.destinations.snowflake.naming import Naming
from cdc_runner.destinations.snowflake.objects import Objects
from cdc_runner.destinations.snowflake.sql import SqlSession
from cdc_runner.destinations.snowflake.state import StateStore
from cdc_runner.destinations.snowflake.streaming import StreamingService
from cdc_runner.destinations.snowflake.transport import Transport
from cdc_runner.destinations.snowflake.waiting import WaitingStore
from cdc_runner.spec import SnowflakeAddress


class Session:
    """The clients of an account. Made without a connection; `close` ends waits and connections."""

    def __init__(self, address: SnowflakeAddress, pipeline: str, destination: str) -> None:
        """Args:
        address: the account.
        pipeline: identity of the pipeline.
        destination: identity of the destination.

        Raises:
            RosettaError: CREDENTIAL_UNREADABLE for a private key that is none.
        """
        self.address = address
        self.writer = f"{pipeline}/{destination}"
        self.tokens = KeyPairTokens(address)
        self.transport = Transport()
        self.sql = SqlSession(address, self.tokens, self.transport)
        self.streaming = StreamingService(address, self.tokens, self.transport)
        self.naming = Naming(address, pipeline, destination)
        self.store = StateStore(self.sql, self.naming, self.writer)
        self.waiting = WaitingStore(self.sql, self.naming, self.writer)
        self.objects = Objects(self.sql, address, self.naming, self.store, self.writer)

    def close(self) -> None:
        """End waits and connections; idempotent."""
        self.sql.cancel_waits()
        self.transport.close()
