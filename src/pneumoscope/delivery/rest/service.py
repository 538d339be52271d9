"""What the routes share: one model, the queue of requests, the threads and the counters.

`WorkQueue` admits requests. A request that would wait too long is rejected at once with 503, before
its body is read, so that admitted requests are completed in time under any load.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from pneumoscope.config import LimitsConfig, ServeConfig
from pneumoscope.delivery.rest.documents import (
    Document,
    Wanted,
    http_status,
    model_document,
    model_id,
    pictures,
    prediction_document,
    too_large,
)
from pneumoscope.delivery.rest.guard import HELD, ClientGoneError, Problem, RequestError, overloaded
from pneumoscope.delivery.rest.logs import Metrics, event
from pneumoscope.delivery.rest.pipeline import PASSES, Pipeline
from pneumoscope.delivery.rest.upload import Memory, Upload, UploadLimits, receive_files
from pneumoscope.errors import Reason
from pneumoscope.images.budget import keep_freed_memory
from pneumoscope.images.grey import count_warnings, join_warnings
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.preparing import threads
from pneumoscope.inference.processes import Processes
from pneumoscope.inference.results import Result
from pneumoscope.records import Prediction

ResultT = TypeVar("ResultT")

_WEIGHT = 0.1
"""Weight of the newest image in the running mean."""

_MOST_JUMP = 4.0
"""One image counts at most this many times the mean."""

SLOW_SECONDS = 2.0
"""A body that has been coming in for longer dawdles."""

_LEAST_RATE = 8 << 10
"""Bytes per second that a body must have after its time-out."""

_AHEAD = 2 * PASSES[-1]
"""Images of a request that are under way at once."""


@dataclass(slots=True, eq=False)
class Place:
    """One request that was taken on.

    Attributes:
        address: of its client.
        began: as of `time.monotonic`.
        receiving: whether its body is still coming in.
        ended: why it was ended to make room; "" while it wasn't.
        task: that works on it.
    """

    address: str
    began: float = field(default_factory=time.monotonic)
    receiving: bool = True
    ended: bool = False
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)

    @property
    def slow(self) -> bool:
        """Whether its body has been coming in for long: it costs nothing but its place."""
        return self.receiving and time.monotonic() - self.began > SLOW_SECONDS

    def end(self) -> None:
        """Stop waiting for its body."""
        self.ended = True
        if self.task is not None:
            self.task.cancel()


class WorkQueue:
    """Counts what is under way. All methods run in the event loop.

    Args:
        config: how much may be under way, and for how long.

    Attributes:
        images: images that wait or are being scored, including those of clients that left.
        cost: running mean of seconds per image: the time of an image over the number of images at
            that time (Little, A proof for the queuing formula L = λW, 1961).
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._places: set[Place] = set()
        self.images = 0
        self.cost = 0.1

    @property
    def requests(self) -> int:
        """The number of admitted requests that are not complete."""
        return len(self._places)

    @property
    def expected(self) -> float:
        """Seconds until a request that arrives now would be complete."""
        busy = sum(not place.slow for place in self._places)
        return (max(busy, self.images) + 1) * self.cost

    @contextmanager
    def taken_on(self, address: str = "") -> Iterator[Place]:
        """Admit one request until the block ends.

        If no place is free, the oldest request with a slow body loses its place, of the address
        that has most such requests. One address has at most half of all places for them.

        Raises:
            RequestError: 503, with the seconds after which to try again.
        """
        late = self.expected - self._config.longest_wait
        busy = any(not place.slow for place in self._places)
        # If nothing else is under way, waiting would not help.
        if busy and late > 0:
            words = f"{self.requests} requests are under way, no room for more"
            raise overloaded(words, late)
        self._make_room(address)
        if self.requests >= self._config.requests:
            words = f"{self.requests} requests are under way, no room for more"
            raise overloaded(words, self.expected)
        place = Place(address)
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.discard(place)

    def _make_room(self, address: str) -> None:
        slow = [place for place in self._places if place.slow]
        counts = Counter(place.address for place in slow)
        if slow and self.requests >= self._config.requests:
            self._end_oldest(slow, counts.most_common(1)[0][0])
        elif counts[address] > self._config.requests // 2:
            self._end_oldest(slow, address)

    def _end_oldest(self, places: list[Place], address: str) -> None:
        theirs = [place for place in places if place.address == address]
        oldest = min(theirs, key=lambda place: place.began)
        oldest.end()
        self._places.discard(oldest)

    async def result(self, job: Future[ResultT], gone: Awaitable[None]) -> ResultT:
        """Wait for `job` and return its result.

        Args:
            job: the future result of an image; cancelled if the client leaves.
            gone: ends when the client disconnects.

        Raises:
            ClientGoneError: `gone` ended first.
        """
        loop = asyncio.get_running_loop()
        leaving = asyncio.ensure_future(gone)
        began = time.perf_counter()
        self.images += 1
        beside = self.images
        # Counted until the threads are done with it, even if the client left.
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_down))
        running = asyncio.wrap_future(job)
        ends: set[asyncio.Future[Any]] = {running, leaving}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise ClientGoneError("the client disconnected before the response")
            result = running.result()
        finally:
            running.cancel()  # threads finish what they have begun
            leaving.cancel()
        images = max(1.0, (beside + self.images) / 2)
        # An image crafted to take long must not cause others to be rejected.
        took = min((time.perf_counter() - began) / images, _MOST_JUMP * self.cost)
        self.cost += _WEIGHT * (took - self.cost)
        return result

    def _count_down(self) -> None:
        self.images -= 1


class Service:
    """What the routes share: the model, the queue before it, and the counters.

    Args:
        predictor: the model.
        config: limits of requests.
        limits: limits for reading one image.
    """

    def __init__(self, predictor: Predictor, config: ServeConfig, limits: LimitsConfig) -> None:
        self.config = config
        # As many readers as `predict` has: their pixels stay in the processor's caches, and memory
        # is bounded, however many images wait for the engine.
        count = config.readers or threads()
        self.processes = Processes(count, spare=count)
        self.predictor = predictor.adapted(limits, PASSES, self.processes)
        self.pipeline = Pipeline(self.predictor, 2 * count)
        self.model = model_id(predictor.manifest)
        self.model_document = model_document(predictor.manifest, predictor.precision)
        self.queue = WorkQueue(config)
        self.memory = Memory(config.max_held)
        self.metrics = Metrics(predictor.manifest.validation)
        self.metrics.gauge(
            "pneumoscope_requests_under_way", "requests", lambda: self.queue.requests
        )
        self.metrics.gauge(
            "pneumoscope_cost_seconds", "of the machine per image", lambda: self.queue.cost
        )
        self.metrics.gauge("pneumoscope_bytes_held", "of bodies", lambda: self.memory.held)
        self.state = "starting"

    def warm_up(self) -> None:
        """Warm up the engine, and measure the cost of an image on a phantom of 2 megapixels."""
        keep_freed_memory(shared=True)
        self.processes.start()
        self.predictor.warm_up()
        image = _nothing()
        self.pipeline.submit(image, "nothing").result()
        began = time.perf_counter()
        self.pipeline.submit(image, "nothing").result()
        self.queue.cost = time.perf_counter() - began
        self.state = "ok"

    async def receive(self, request: Request, files: int) -> list[Upload]:
        """Receive the files of a request, held in memory until it ends.

        Raises:
            RequestError: the body is refused, or there is no room.
            ClientGoneError: it ended early.
        """
        held: ExitStack = request.scope[HELD]
        address = request.client.host if request.client else ""
        place = held.enter_context(self.queue.taken_on(address))

        async def body() -> AsyncIterator[bytes]:
            began = time.monotonic()
            received = 0
            chunks = aiter(request.stream())
            while True:
                # Each chunk has its time, and all of them a rate that a living client exceeds.
                left = began + self.config.body_timeout + received / _LEAST_RATE - time.monotonic()
                async with asyncio.timeout(max(left, 0.0)):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                received += len(chunk)
                self.memory.take(len(chunk), held)
                yield chunk

        limits = UploadLimits(files, self.config.max_upload, self.config.max_held)
        headers = request.headers
        try:
            async with asyncio.timeout(self.config.timeout):
                files_of_it = await receive_files(
                    headers.get("content-type", ""),
                    headers.get("content-length", ""),
                    body(),
                    limits,
                )
            place.receiving = False
            return files_of_it
        except TimeoutError as error:
            words = f"the body did not come in within {self.config.timeout:g} s, or too slowly"
            raise RequestError(408, Problem.TIMED_OUT, words) from error
        except asyncio.CancelledError as error:
            if not place.ended or place.task is None:
                raise
            place.task.uncancel()
            words = "the body came in slowly, and others needed the place. Send it again"
            raise RequestError(408, Problem.TIMED_OUT, words) from error
        except ClientDisconnect as error:
            raise ClientGoneError("the client hung up while it sent") from error

    async def predict(self, upload: Upload, wanted: Wanted, gone: Awaitable[None]) -> Document:
        """Score one image.

        Args:
            upload: the file.
            wanted: images beside the row.
            gone: ends when the client disconnects.

        Raises:
            TimeoutError: it took too long.
            ClientGoneError: nobody waits for it.
        """
        async with asyncio.timeout(self.config.timeout):
            result = await self._predict(upload, wanted, gone)
            body = prediction_document(result.prediction, self.model) | {"heatmap": None}
            if wanted.pictures:
                draw = partial(pictures, result, wanted, self.predictor.manifest.preprocessing)
                loop = asyncio.get_running_loop()
                body |= await loop.run_in_executor(self.pipeline.readers, draw)
        self.count(result.prediction)
        return Document(http_status(result.prediction), body, result.prediction)

    async def _predict(self, upload: Upload, wanted: Wanted, gone: Awaitable[None]) -> Result:
        if upload.too_large:
            return too_large(upload, self.config.max_upload)
        name, keep = upload.name, wanted.pictures
        return await self.queue.result(
            self.pipeline.submit(upload.content, name, keep_image=keep), gone
        )

    def count(self, prediction: Prediction) -> None:
        """Record a result in metrics, and in the log without its score."""
        self.metrics.count_image(prediction)
        reason = prediction.reason.value if prediction.reason else None
        kinds = join_warnings(sorted(count_warnings([prediction.warnings])))
        event("film", status=prediction.status, reason=reason, warnings=kinds)

    async def lines(
        self, request: Request, uploads: list[Upload], wanted: Wanted
    ) -> AsyncIterator[bytes]:
        """Yield a line of JSON for each file, in order, as soon as it is scored.

        Further files are read in parallel, enough for full batches.
        """
        gone = asyncio.ensure_future(hung_up(request))
        remaining = iter(uploads)
        flying: deque[asyncio.Task[Document]] = deque()

        def begin(count: int) -> None:
            for upload in islice(remaining, count):
                work = self._row(upload, wanted, asyncio.shield(gone))
                flying.append(asyncio.create_task(work))

        try:
            begin(_AHEAD)
            for number in range(len(uploads)):
                try:
                    body = (await flying.popleft()).body
                except ClientGoneError:
                    return
                begin(1)
                body |= {"index": number, "done": number + 1, "total": len(uploads)}
                yield json.dumps(body, allow_nan=False).encode() + b"\n"
        finally:
            gone.cancel()
            for task in flying:
                task.cancel()  # also retrieves its exception

    async def _row(self, upload: Upload, wanted: Wanted, gone: Awaitable[None]) -> Document:
        """Score one file of a batch; a time-out of one does not end the others."""
        try:
            return await self.predict(upload, wanted, gone)
        except TimeoutError:
            reason = Reason.INTERNAL_ERROR
            words = f"no result within {self.config.timeout:g} s. Send it again"
            late = Prediction(upload.name, reason.status, reason, detail=words)
            self.count(late)
            return Document(http_status(late), prediction_document(late, self.model), late)


async def hung_up(request: Request) -> None:
    """Ends when the client closes the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _nothing() -> bytes:
    """A JPEG of 2 megapixels that shows a ramp."""
    from PIL import Image

    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.broadcast_to(ramp, (1250, 1600)).copy()).save(stream, "JPEG")
    return stream.getvalue()
