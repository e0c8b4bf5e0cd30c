"""The Flask application: its routes, and one shape for whatever goes wrong."""

from __future__ import annotations

import logging

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from paddlesft.serving import api_chat, chat_completions, completions
from paddlesft.serving.errors import ApiError
from paddlesft.serving.served_models import ServedModel
from paddlesft.serving.service import Service
from paddlesft.serving.settings import ServingSettings

logger = logging.getLogger("paddlesft")


def create_app(service: Service, settings: ServingSettings) -> Flask:
    """Return the application.

    Args:
        service: answers.
        settings: limits.
    """
    app = Flask("paddlesft", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.json.sort_keys = False
    app.json.ensure_ascii = False
    app.url_map.strict_slashes = False
    app.register_blueprint(chat_completions.create_blueprint(service))
    app.register_blueprint(completions.create_blueprint(service))
    app.register_blueprint(api_chat.create_blueprint(service, settings))

    @app.get("/v1/models")
    def models() -> Response:
        return jsonify({"object": "list", "data": [described(model) for model in service.models]})

    @app.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        return jsonify(described(service.models.find(name)))

    @app.errorhandler(ApiError)
    def refused(error: ApiError) -> Response:
        answer = jsonify(error.body(request.path))
        answer.status_code = error.status
        answer.headers.update(error.headers)
        return answer

    @app.errorhandler(HTTPException)
    def not_served(error: HTTPException) -> Response:
        return refused(_as_api_error(error, settings))

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        logger.exception("Request %s failed.", request.environ.get("paddlesft.request_id", ""))
        return refused(ApiError(500, "Something went wrong in the server.", "server_error"))

    return app


def described(model: ServedModel) -> dict[str, object]:
    """Return a model as ``/v1/models`` shows it."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "paddlesft",
        "adapter": model.adapter_kind,
        "context_length": model.context_length,
    }


def _as_api_error(error: HTTPException, settings: ServingSettings) -> ApiError:
    path = request.path[:80]
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(set(error.valid_methods or ()) - {"HEAD", "OPTIONS"}))
        text = f"{path} takes {allowed}; found {request.method[:20]}."
        return ApiError(405, text, code="method_not_allowed", headers={"Allow": allowed})
    if isinstance(error, RequestEntityTooLarge):
        text = f"The request's body is too large; at most {settings.max_body_bytes} bytes are taken."
        return ApiError(413, text, code="body_too_large")
    if error.code == 404:
        known = "/v1/chat/completions, /v1/completions, /v1/models, /api/chat, /health, /ready, /metrics"
        return ApiError(404, f"There is no {path} here. Known: {known}.", code="unknown_path")
    kind = "server_error" if (error.code or 500) >= 500 else "invalid_request_error"
    return ApiError(error.code or 500, error.name, kind)
