"""`qia3 serve` on a port of its own, in a thread, and clients of it."""

from __future__ import annotations

import threading
import time

import httpx2 as httpx
import openai

from qia3.server.listen import HTTP
from qia3.server.run import Options, make_server


class Running:
    """A server on a port of its own, in a thread."""

    def __init__(self, bundle, **options) -> None:
        self.server = make_server(bundle, Options(threads=1, rows=3, **options))
        self.uvicorn = HTTP(self.server)
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        while not self.uvicorn.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stop(self):
        self.http.close()
        self.client.close()
        self.uvicorn.should_exit = True
        self.thread.join()


def chat(client, model, text, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)
