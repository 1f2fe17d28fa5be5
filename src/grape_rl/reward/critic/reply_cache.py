"""A cache on disk of critics' replies, keyed by everything that can change them: no call is paid for twice."""

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

_MAX_UNWRITTEN, _MAX_SECONDS = 200, 1.0


def reply_key(call: Mapping[str, Any]) -> str:
    """The key of a call: a digest of its contents, which include the sample's number among equal calls."""
    text = json.dumps(call, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """Replies by key in an SQLite file, which several processes may share. One thread uses an instance.

    Replies are written in groups, the last of them by ``close``.

    Raises:
        ValueError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: dict[str, str] = {}
        self._since = 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{path}: cannot be used as a cache of critics' answers: {error}") from None
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
            raise ValueError(f"{path}: cannot be used as a cache of critics' answers: {error}") from None

    def get(self, key: str) -> Reply | None:
        """The cached reply, with cost, tokens and tries of 0: it was paid for before. None if there is none."""
        if (text := self._unwritten.get(key)) is None:
            with self._errors():
                row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            text = row[0] if row else None
        free = {"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0, "tries": 0}
        try:
            return None if text is None else Reply(**json.loads(text) | free)
        except (ValueError, TypeError):  # written by another version of this program: ask again
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Add a reply."""
        if not self._unwritten:
            self._since = time.monotonic()
        self._unwritten[key] = json.dumps(asdict(reply))
        if len(self._unwritten) >= _MAX_UNWRITTEN or time.monotonic() - self._since >= _MAX_SECONDS:
            self._write()

    def close(self) -> None:
        """Write the remaining replies and close the file."""
        try:
            self._write()
        finally:
            self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:  # such as a full disk: the run stops, and its finished steps are kept
            raise RuntimeError(f"{self._path}: the cache of critics' answers failed: {error}") from None

    def _write(self) -> None:
        with self._errors(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", list(self._unwritten.items()))
        self._unwritten.clear()
