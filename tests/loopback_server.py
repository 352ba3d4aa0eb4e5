"""A stand-in for an NDIF server, to be run as a script of its own: `python -I loopback_server.py FOLDER...`.

It speaks nnsight's protocol on the loopback address and runs jobs one by one on the checkpoints in the folders, which
it names by their paths. It has neither this project nor jaxtyping. It is not NDIF: it says nothing about NDIF's queues,
limits, versions or sandbox. `GET /wanted?failure=...` decides how the next job fails ("http 503 TEXT", "fail TEXT",
"say TEXT", "close") or is "slow"; `GET /seen?text=...` tells how many jobs came and how many held a text.
"""

import asyncio
import io
import json
import sys
import traceback
import uuid

import torch
import zstandard
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing import tracer as tracing
from tornado import ioloop, web, websocket

sys.modules["lib"] = sys.modules["jaxtyping"] = None  # importing them fails
KEY = "the right key"
MODELS, SOCKETS, SEEN = {}, {}, []
WANTED = {"failure": ""}


def run(folder, blob, environment):
    """What a job saved."""
    model = MODELS[folder]
    model._remoteable_set_env(environment)
    job = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=True)
    tracing.inc()
    try:
        job.execute(job.info.code)
        saved = {name: value for name, value in job.info.frame.f_locals.items() if id(value) in tracing._saves()}
    finally:
        tracing.dec()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


class Subscribe(websocket.WebSocketHandler):
    def prepare(self):
        if self.request.headers.get("ndif-api-key") != KEY:
            raise web.HTTPError(401)

    def open(self):
        self.id = str(uuid.uuid4())
        SOCKETS[self.id] = self
        self.write_message(json.dumps({"session_id": self.id}))


class Request(web.RequestHandler):
    def post(self):
        failure, WANTED["failure"] = WANTED["failure"], ""
        blob, asked = self.request.files["blob"][0]["body"], json.loads(self.get_body_argument("data"))
        SEEN.append((asked, zstandard.ZstdDecompressor().decompress(blob)))
        kind, _, said = failure.partition(" ")
        if kind == "http":
            self.set_status(int(said[:3]))
            return self.write({"detail": said[4:]})
        self.write(ResponseModel(id="1", status=Status.RECEIVED).model_dump_json())
        wait = 1.0 if kind == "slow" else 0.0
        socket = SOCKETS.pop(asked["session_id"])
        ioloop.IOLoop.current().call_later(wait, self.answer, socket, asked, blob, kind, said)

    def answer(self, socket, asked, blob, kind, said):
        socket.write_message(ResponseModel(id="1", status=Status.RUNNING).model_dump_json())
        if kind == "close":
            return socket.close()
        try:
            if kind in ("fail", "say"):
                raise RuntimeError(said)
            folder = json.loads(asked["model_key"].split(":", 1)[1])["repo_id"]
            done = ResponseModel(id="1", status=Status.COMPLETED, data=run(folder, blob, asked["env"]))
            socket.write_message(done.pickle(), binary=True)
        except Exception:
            trace = said if kind == "say" else traceback.format_exc()
            socket.write_message(ResponseModel(id="1", status=Status.ERROR, description=trace).model_dump_json())


class Control(web.RequestHandler):
    def get(self, what):
        if what == "wanted":
            WANTED["failure"] = self.get_argument("failure")
        text = self.get_argument("text", "").encode()
        self.write({"jobs": len(SEEN), "with_text": sum(text in job for _, job in SEEN), "asked": [a for a, _ in SEEN]})


async def main():
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        key = json.dumps({"repo_id": folder, "revision": None, "task": "text-generation"})
        MODELS[folder] = TransformersModel.from_model_key(
            f"nnsight.modeling.transformers.TransformersModel:{key}", dispatch=True
        )
    routes = [("/subscribe", Subscribe), ("/request", Request), ("/(wanted|seen)", Control)]
    server = web.Application(routes).listen(0, "127.0.0.1")
    print(next(iter(server._sockets.values())).getsockname()[1], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
