#!/usr/bin/env python3
"""A bad network in front of a server: every piece late, some connections cut in the middle, and now and then nothing at all.

    proxy.py LISTEN_PORT HOST:PORT [--delay SECONDS] [--cut PROBABILITY] [--seed N] [--away FROM:SECONDS,...]

A piece is what one read gives, up to 64 KiB. `--cut` is the probability, for each piece, that both sides lose the connection. `--away 10:30`
takes the server away for 30 seconds, 10 seconds after the start: connections are cut, and new ones refused by closing them.
"""

import argparse
import asyncio
import random
import time

PIECE_BYTES = 1 << 16


class Network:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.begun = time.monotonic()
        self.cuts = 0

    def is_away(self):
        now = time.monotonic() - self.begun
        return any(start <= now < start + length for start, length in self.options.away)

    async def carry(self, reader, writer, other):
        try:
            while piece := await reader.read(PIECE_BYTES):
                await asyncio.sleep(self.options.delay * self.random.uniform(0.5, 1.5))
                if self.is_away() or self.random.random() < self.options.cut:
                    self.cuts += 1
                    for lost in (writer, other):
                        lost.transport.abort()
                    return
                writer.write(piece)
                await writer.drain()
            writer.write_eof()
        except (ConnectionError, OSError):
            writer.transport.abort()
            other.transport.abort()

    async def connect(self, reader, writer):
        if self.is_away():
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.options.server)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self.carry(reader, far_writer, writer), self.carry(far_reader, writer, far_writer))
        for ended in (writer, far_writer):
            ended.close()


def away(text):
    return [tuple(float(part) for part in window.split(":")) for window in text.split(",")]


def server(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("server", type=server)
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--cut", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--away", type=away, default=[])
    network = Network(parser.parse_args())
    listening = await asyncio.start_server(network.connect, "127.0.0.1", network.options.port)
    async with listening:
        while True:
            await asyncio.sleep(10)
            print(f"{network.cuts} connections were cut", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
