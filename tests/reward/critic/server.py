"""A server with OpenAI's chat completions API, with configurable answers and failures."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any] | tuple[int, dict[str, str], Any] | None
"""Fields of the answer's choice; or a status, headers and a body; or None to close the connection."""


class Server:
    """Runs in a thread while it is entered. ``answer(request, number)`` makes each answer, after ``delay`` seconds."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer], delay: float = 0.0) -> None:
        self.answer, self.delay = answer, delay
        self.requests: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0

    def __enter__(self) -> "Server":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serve = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(serve, self._loop).result()
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *error: object) -> None:
        async def stopped() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(stopped(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().lower().split("\r\n")
                length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
                request = json.loads(await reader.readexactly(length))
                self.requests.append(request)
                number = len(self.requests) - 1
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                await asyncio.sleep(self.delay)
                self.at_once -= 1
                answer = self.answer(request, number)
                if answer is None:
                    break
                status, headers, body = answer if isinstance(answer, tuple) else (200, {}, completion(answer))
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(
                    f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{told}"
                    f"content-length: {len(content)}\r\n\r\n".encode()
                    + content
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def completion(choice: dict[str, Any]) -> dict[str, Any]:
    """A chat completion with one choice, from its ``content`` and other fields."""
    message = {"role": "assistant", "content": choice.get("content", ""), "refusal": choice.get("refusal")}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "stub",
        "choices": [{
            "index": 0, "message": message, "finish_reason": choice.get("finish_reason", "stop"),
            "logprobs": choice.get("logprobs"),
        }],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }  # fmt: skip


def verdict(label: str, confidence: int = 20, reasoning: str = "so") -> dict[str, Any]:
    """A choice that contains a verdict in JSON."""
    return {"content": json.dumps({"reasoning": reasoning, "verdict": label, "confidence": confidence})}


def labels(**logp: float) -> dict[str, Any]:
    """A choice of one token, with the log-probs of several."""
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in logp.items()]
    first = max(top, key=lambda each: each["logprob"])
    return {"content": first["token"], "logprobs": {"content": [first | {"top_logprobs": top}], "refusal": None}}
