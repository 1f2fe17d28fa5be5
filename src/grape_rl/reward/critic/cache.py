"""A critic's answers on disk, by everything that can change them: what was asked once need not be paid for again."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grape_rl.reward.critic.reply import Reply


def key(asked: Mapping[str, Any]) -> str:
    """The key of a call: a digest of all that it says, the number of the sample among equal calls included."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Cache:
    """Answers by key, in an SQLite file that several processes may share. Failures are never kept."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=60)
        with self._lock, self._connection:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, key: str) -> Reply | None:
        """The answer of a key, as it was paid for once: its own cost is 0 now."""
        with self._lock:
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(**json.loads(row[0]) | {"cost": 0.0, "prompt_tokens": 0, "completion_tokens": 0}) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer."""
        if reply.status != "ok":
            return
        with self._lock, self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(asdict(reply), ensure_ascii=False))
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
