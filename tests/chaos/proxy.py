"""Stands between the programs and the broker, and can swallow everything while it looks alive."""

import asyncio
import contextlib
import threading
from pathlib import Path


class Proxy:
    """Unix socket to Unix socket, on a thread of its own. `swallow` True: bytes go in and never come out."""

    def __init__(self, listen: Path, target: Path) -> None:
        self.swallow = False
        self._listen, self._target = listen, target
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None] | None] = set()  # the loop itself holds them weakly
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.create_task(asyncio.start_unix_server(self._accept, str(self._listen)))
        self._loop.run_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        if self.swallow:
            await self._pass(reader, None)
            return
        try:
            there, back = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer), return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
        """A connection once dead stays dead."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if writer is not None and self.swallow:
                    writer = None
                if writer is not None:
                    writer.write(data)
                    await writer.drain()
        if writer is not None:
            writer.close()
