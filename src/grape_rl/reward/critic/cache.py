"""A critic's answers on disk, by everything that can change them: what was asked once need not be paid for again."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grape_rl.reward.critic.reply import Reply

_KEPT, _SECONDS = 200, 1.0


def key(asked: Mapping[str, Any]) -> str:
    """The key of a call: a digest of all that it says, the number of the sample among equal calls included."""
    said = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Answers by key, in an SQLite file that several processes may share; one thread uses it.

    What is put is written with others in one go, at the latest by ``close``.

    Raises:
        ValueError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: dict[str, str] = {}
        self._since = 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{path}: cannot keep critics' answers: {error}") from None
        try:
            with self._connection:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=NORMAL")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
                )
                self._connection.execute("SELECT key, reply FROM replies LIMIT 0")
        except sqlite3.Error as error:
            self._connection.close()
            raise ValueError(f"{path}: cannot keep critics' answers: {error}") from None

    def get(self, key: str) -> Reply | None:
        """The answer of a key, as it was paid for once: its own cost and tries are 0 now."""
        if (kept := self._waiting.get(key)) is None:
            with self._told():
                row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            kept = row[0] if row else None
        free = {"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0, "tries": 0}
        try:
            return None if kept is None else Reply(**json.loads(kept) | free)
        except (ValueError, TypeError):  # of another version of this program: it is asked again
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting[key] = json.dumps(asdict(reply))
        if len(self._waiting) >= _KEPT or time.monotonic() - self._since >= _SECONDS:
            self._write()

    def close(self) -> None:
        """Write what waits, and close the file."""
        try:
            self._write()
        finally:
            self._connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:  # a full disk, say: the run stops, and keeps its steps
            raise RuntimeError(f"{self._path}: critics' answers cannot be kept: {error}") from None

    def _write(self) -> None:
        with self._told(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", list(self._waiting.items()))
        self._waiting.clear()
