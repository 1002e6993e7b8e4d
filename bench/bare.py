"""The limit: a responder on uvloop and httptools that reads requests and answers all of them alike.

`python -m bench.bare PORT`. Nothing in Python that parses HTTP properly can be faster by much.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop

ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nkubeflow-userid: alice@example.com\r\n"
    b"kubeflow-groups: admins,dev\r\nauth-method: cookie\r\ncontent-length: 0\r\n"
)


class Bare(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.parser.should_keep_alive():
            self.transport.write(ANSWER + b"\r\n")
        else:
            self.transport.write(ANSWER + b"connection: close\r\n\r\n")
            self.transport.close()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
