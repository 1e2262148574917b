"""What the internal listener offers, for an OpenAPI document of its own."""

from __future__ import annotations

from typing import Any, Final

from services.gateway.errors import JobEnded, NotJson, SequenceGap, Unprocessable
from services.gateway.job_reports import LARGEST_BODY, MOST_REPORTS, JobReports, Reported
from shared.errors import InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from shared.openapi import document
from shared.operations import JSON, Body, Operation, Parameter, Response, Section

__all__ = ["INTERNAL", "internal_document"]

INTERNAL: Final = Section(
    "Jobs",
    "Workers in any language report on the processing of uploads. On the internal listener "
    "only (`INTERNAL_BIND`), for the platform around the service.",
    (
        Operation(
            name="report_on_job",
            method="POST",
            path="/internal/v1/jobs/{job_id}/events",
            summary="Report what has become of a job",
            about="`queued`, `started`, `completed` and `failed` are lifecycle events: the "
            "worker counts those of a job from 1 in `seq`, and each is answered 202 only once "
            "it is on the stream. `progress` carries the `seq` that it follows; of several the "
            "newest counts.\n\n"
            "To repeat a report is always safe: what is known is counted in `known` and "
            "changes nothing. One that comes before its predecessor waits for it, up to two "
            "seconds, and is then refused with the number that is due in `details.expected`; "
            "a worker that has lost count goes on from there. A list is taken as a whole or "
            "not at all, but for 503: then repeat it.\n\n"
            "A job is known as soon as its upload has been created. Members that a type does "
            "not have are ignored.",
            parameters=(Parameter("job_id", "path", str, "`job_id` of the upload."),),
            body=Body(
                {JSON: JobReports},
                f"One report, or a list of up to {MOST_REPORTS}; at most {LARGEST_BODY} bytes.",
            ),
            responses={202: Response("What was new is on the stream.", (), {JSON: Reported})},
            errors=(
                *(InvalidRequest, NotFound, JobEnded, SequenceGap, PayloadTooLarge),
                *(NotJson, Unprocessable, Unavailable),
            ),
            examples=(
                "curl $URL/internal/v1/jobs/$JOB/events -H 'Content-Type: application/json' "
                '-H "Authorization: Bearer $TOKEN" -d \'{"type":"started","seq":2}\'',
            ),
        ),
    ),
)


def internal_document() -> dict[str, Any]:
    """Return the OpenAPI document of the internal listener."""
    return document(
        "Uploads, internal interface",
        "For the platform around the service: not reachable from outside. Who calls is known "
        "by the mesh, or shows a service token (`INTERNAL_AUTH`, `INTERNAL_TOKENS`).",
        [INTERNAL],
    )
