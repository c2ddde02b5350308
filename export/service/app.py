"""The routes, as OpenAPI describes them."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import metricgold
from export.manifest import ExportError
from export.service import answers, bodies
from export.service.answers import Format
from export.service.bodies import FIELD, FORM, Refused
from export.service.limits import IMAGE_TYPES, MAX_ENSEMBLE, MAX_RESOLUTION, MAX_STEPS
from export.service.model import Options
from export.service.schemas import Health, ModelInfo, Problem, Summary
from export.service.service import Service
from metricgold.errors import UserError
from metricgold.picture_files import CameraOptions
from metricgold.uploads import TooLargeError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BINARY = {"type": "string", "format": "binary"}
_FORM = {
    "schema": {"type": "object", "properties": {FIELD: _BINARY}, "required": [FIELD]},
    "encoding": {FIELD: {"contentType": ", ".join(IMAGE_TYPES)}},
}
_BODY = {
    "required": True,
    "content": {kind: {"schema": _BINARY} for kind in IMAGE_TYPES} | {FORM: _FORM},
}
_WHY = {
    408: "The picture came too slowly.",
    413: "The file has too many bytes or the picture too many pixels.",
    415: "The body is of another type.",
    422: "No picture, a damaged one, or an option that is not possible.",
    503: "No place or no model yet; Retry-After says when to come again.",
    504: "There was no answer in time.",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": why} for status, why in _WHY.items()
}

open_routes = APIRouter()
routes = APIRouter()


@open_routes.get("/healthz", summary="Whether the process is alive")
async def healthz() -> Health:
    """Always, as long as there is an answer."""
    return Health(status="alive")


@open_routes.get(
    "/readyz",
    summary="Whether the model is loaded and warm",
    responses={503: {"model": Health, "description": "Not yet."}},
)
async def readyz(request: Request, response: Response) -> Health:
    """After one prediction has been made."""
    ready = _service(request).model.ready
    response.status_code = 200 if ready else 503
    return Health(status="ready" if ready else "loading")


@routes.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, latency, batches, queue, stages, memory."""
    return Response(_service(request).metrics.text(), media_type=METRICS_TYPE)


@routes.get("/v1/model", summary="The model that is being served", responses={503: _PROBLEMS[503]})
async def model(request: Request) -> ModelInfo:
    """Its depth range, arithmetic, back-end and hashes."""
    opened = _service(request).model
    if not opened.ready:
        raise Refused(503, "The model is being loaded; come again soon.", {"Retry-After": "2"})
    return opened.info()


@routes.post(
    "/v1/depth",
    summary="Metric depth of a picture",
    response_class=Response,
    responses={200: answers.documented(), **_PROBLEMS},
    openapi_extra={"requestBody": _BODY},
)
async def depth(
    request: Request,
    fov_deg: Annotated[
        float | None, Query(ge=0.01, le=179.9, description="Vertical field of view in degrees.")
    ] = None,
    focal_px: Annotated[
        float | None,
        Query(
            ge=1, le=1e6, description="In place of fov_deg: focal length in pixels of the picture."
        ),
    ] = None,
    steps: Annotated[
        int | None, Query(ge=1, le=MAX_STEPS, description="Default: what the model was made for.")
    ] = None,
    ensemble: Annotated[
        int, Query(ge=1, le=MAX_ENSEMBLE, description="Two or more give an uncertainty.")
    ] = 1,
    processing_resolution: Annotated[
        int | None,
        Query(ge=0, le=MAX_RESOLUTION, description="Long side in pixels; 0: the picture's own."),
    ] = None,
    format: Annotated[Format, Query(description="What is answered.")] = Format.NPY,
) -> Response:
    """The camera is what the request says, else what the file's EXIF says, else unknown."""
    if fov_deg is not None and focal_px is not None:
        raise Refused(422, "fov_deg and focal_px say the same thing; give one of them.")
    camera = CameraOptions(fov_deg, focal_px)
    options = Options(steps=steps, ensemble=ensemble, processing_resolution=processing_resolution)
    content = await _service(request).depth(request, camera, options, format)
    return Response(
        content.body, media_type=content.media_type, headers=answers.headers_of(content)
    )


def create_app(service: Service, token: str | None) -> FastAPI:
    """The routes over a service; all but health ask for ``token``, if there is one."""
    app = FastAPI(
        title="MetricGold",
        summary="Metric depth from a single picture",
        version=metricgold.__version__,
        docs_url=None,
        redoc_url=None,  # both would load scripts from elsewhere
        lifespan=service.lifespan,
    )
    app.state.service = service
    app.state.token = token
    app.include_router(open_routes)
    if token is None:
        app.include_router(routes)
    else:
        schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
        refused: dict[int | str, dict[str, Any]] = {
            401: {"description": "No token, or another.", "content": {"application/json": schema}}
        }
        app.include_router(routes, dependencies=[Depends(check_token)], responses=refused)
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(TooLargeError, _on_user_error)
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(Exception, _on_failure)
    return _with_summary(app)


async def check_token(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> None:
    """Let in who has the token; compared in constant time.

    Raises:
        Refused: no token, or another.
    """
    expected: str = request.app.state.token
    found = "" if given is None else given.credentials
    if not secrets.compare_digest(found.encode(), expected.encode()):
        raise Refused(
            401,
            "This server asks for a token (Authorization: Bearer ...).",
            {"WWW-Authenticate": "Bearer"},
        )


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


def _with_summary(app: FastAPI) -> FastAPI:
    """Name ``Summary`` in the schema, which no route returns as a model."""
    schema = app.openapi()
    made = Summary.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = made.pop("$defs", {})
    schema["components"]["schemas"] |= {"Summary": made} | parts
    return app


async def _problem(
    request: Request, status: int, sentence: str, headers: dict[str, str] | None = None
) -> Response:
    if status != 408:  # who is too slow is not waited for
        await bodies.drain(request, _service(request).limits.max_bytes)
    return JSONResponse({"error": sentence}, status, headers)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return await _problem(request, error.status, str(error), error.headers)


async def _on_user_error(request: Request, error: Exception) -> Response:
    if isinstance(error, TooLargeError):
        return await _problem(request, 413, str(error))
    status = 500 if isinstance(error, ExportError) else 422
    return await _problem(request, status, str(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    return await _problem(request, 422, f"{name}: {first['msg']}.")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return await _problem(request, error.status_code, f"{error.detail}.", headers)


async def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _on_failure(request: Request, error: Exception) -> Response:
    """What nobody expected; the log has its traceback."""
    return JSONResponse({"error": f"The server failed ({type(error).__name__})."}, 500)
