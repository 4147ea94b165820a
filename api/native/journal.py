"""/jobs/ID/journal: a job's steps as a file, from which its learning can be done again."""

from fastapi import APIRouter, Response

from pocketllm.api.dependencies import Context
from pocketllm.daemon.services import Services
from pocketllm.engine.errors import MezoError
from pocketllm.engine.formats.model_folder import open_native
from pocketllm.storage.step_log_export import export_journal
from pocketllm.storage.tables import Job

router = APIRouter(tags=["jobs"])

OCTETS = "application/octet-stream"


@router.get(
    "/jobs/{job_id}/journal",
    response_class=Response,
    responses={200: {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
)
def get_journal(job_id: str, services: Context) -> Response:
    """The steps of a job, made so far, in a few bytes each: scalars, learning rates, losses. It holds no text."""
    job = services.store.jobs.get(job_id)
    data = export_journal(job, services.store.journal.encoded(job_id), base_sha256=_base_sha256(services, job))
    name = f"{job.id}.journal"
    return Response(data, media_type=OCTETS, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _base_sha256(services: Services, job: Job) -> str | None:
    """The sum of the weights that the job started from; None when they are gone, or were imported again since."""
    folder = services.folder
    full_parent = job.parent if job.mode == "full" else None
    try:
        manifest = open_native(folder.adapter(full_parent) if full_parent else folder.models / job.model).manifest
    except MezoError:
        return None
    newer = job.started_at is not None and manifest.created_at > job.started_at
    return None if newer else manifest.weights_sha256
