# SPDX-License-Identifier: Apache-2.0
"""A collector of OpenTelemetry spans that come over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """What has come so far.

    Attributes:
        address: as `--otlp-traces-endpoint` takes it.
    """

    def __init__(self) -> None:
        self.address = ""
        self._spans: list[Span] = []
        self._came = threading.Condition()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """As the protocol names it: take spans."""
        with self._came:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._spans.extend(scope.spans)
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, is_enough: Callable[[list[Span]], bool], seconds: float) -> list[Span]:
        """All spans, once they are enough, or the time is over."""
        with self._came:
            self._came.wait_for(lambda: is_enough(self._spans), seconds)
            return list(self._spans)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    collector.address = f"http://127.0.0.1:{port}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
