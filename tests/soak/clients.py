"""The load: clients hold conversations over HTTP, each turn with a server drawn at random, and check every answer."""

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from tests.soak.conversations import Conversation, Turn
from tests.soak.server import Server

ANSWER_SECONDS = 180.0
ABORTED = 0.12  # share of the requests whose client closes the connection
TRIES = 8  # of one turn, while servers are being killed
KEPT = 20  # descriptions of what went wrong


class Clients:
    """`count` threads from `start` to `stop`. `counts` and `wrong` say what happened.

    counts: requests, answers, wrong, aborts, failed_by_kill (their server was killed meanwhile), failed (it wasn't).
    """

    def __init__(self, servers: Sequence[Server], talks: Sequence[Conversation], seed: int, count: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._servers = servers
        self._talks = talks
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 1000 + number),), daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends when the requests under way have been answered."""
        self._stop.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS + 10)

    @property
    def stuck(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def _run(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            for turn in rng.choice(self._talks):
                for _ in range(TRIES):
                    if self._stop.is_set() or self._turn(rng, turn):
                        break

    def _turn(self, rng: random.Random, turn: Turn) -> bool:
        """One request; whether it came to an answer."""
        up = [server for server in self._servers if server.healthy_since]
        if not up:
            time.sleep(0.5)
            return False
        server, gives_up = rng.choice(up), rng.random() < ABORTED
        start, delay = server.starts, rng.uniform(0, 0.4)
        self._count("requests")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)
        try:
            body = {"model": "model", "prompt": turn.prompt, "max_tokens": len(turn.answer), "temperature": 0}
            body |= {"ignore_eos": True, "return_token_ids": True, "stream": gives_up}
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            if gives_up:
                self._hang_up(connection, delay)
                return False
            response = connection.getresponse()
            said = response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"status {response.status}: {said[:500]!r}")
            answer = json.loads(said)["choices"][0]["token_ids"]
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            self._failed(server, start, f"{type(error).__name__}: {error}")
            return False
        finally:
            connection.close()
        self._count("answers")
        if tuple(answer) != turn.answer:
            self._note("wrong", f"{server.name}: {answer} instead of {list(turn.answer)}, {len(turn.prompt)} tokens")
        return True

    def _hang_up(self, connection: http.client.HTTPConnection, delay: float) -> None:
        """After `delay` seconds, or with the first bytes of the answer if they come before."""
        connection.sock.settimeout(delay)
        with suppress(TimeoutError):
            connection.sock.recv(1, socket.MSG_PEEK)
        self._count("aborts")

    def _failed(self, server: Server, start: int, what: str) -> None:
        # The connection is the first to notice that a server is being killed.
        time.sleep(1.0)
        if server.starts != start or not server.healthy_since:
            self._count("failed_by_kill")
        else:
            self._note("failed", f"{server.name}: {what}")

    def _note(self, kind: str, what: str) -> None:
        self._count(kind)
        with self._lock:
            if len(self.wrong) < KEPT:
                self.wrong.append(f"{kind}: {what}")

    def _count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1
