"""What the server answers itself, beside Gradio: the page and its files, what it tells of the model, and pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from chat.engine import Engine
from chat.errors import MissingPictures, PictureError, without_folders
from chat.gate import Access, check_login
from chat.pictures import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, preview_of
from chat.question import CHARACTERS_A_TOKEN, MAX_NEW_TOKENS, MAX_PICTURES
from chat.refusals import Refusal, refused

PAGE = Path(__file__).resolve().parent / "page"
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ASK_AGAIN = {"cache-control": "no-cache"}  # whether it has changed
KEPT_BY_BROWSER = {"cache-control": "private, max-age=86400, immutable"}


class PageFiles(StaticFiles):
    """The page's files; with types that no system's registry changes."""

    def file_response(self, full_path: Any, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        response.headers.update(ASK_AGAIN)
        if media_type := TYPES.get(Path(full_path).suffix):
            response.headers["content-type"] = f"{media_type}; charset=utf-8"
        return response


class Routes:
    """The routes of one engine.

    Args:
        engine: Whose model it is.
        access: Who is let in.
        answer_fn: The number that Gradio gives the endpoint `page_answer`.
    """

    def __init__(self, engine: Engine, access: Access, answer_fn: int) -> None:
        self._engine = engine
        self._access = access
        self._answer_fn = answer_fn
        self._examples = engine.repo.examples() if engine.sees else []
        self._decoder = ThreadPoolExecutor(1, "pictures")  # of its own: those of answers shall not wait for pictures

    def all(self) -> list[Route | Mount]:
        return [
            Route("/", self.page),
            Route("/info", self.info),
            Route("/favicon.ico", self.icon),
            Route("/login", self.login, methods=["POST"]),
            Route("/examples/{number:int}", self.example),
            Route("/pictures", self.keep_picture, methods=["POST"]),
            Route("/pictures/{number}", self.picture),
            Route("/gradio_api/upload", self.upload, methods=["POST"]),
            Mount("/page", PageFiles(directory=PAGE)),
        ]

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=ASK_AGAIN)

    async def icon(self, request: Request) -> Response:
        return FileResponse(PAGE / "icon.svg", headers=ASK_AGAIN)

    async def info(self, request: Request) -> Response:
        return JSONResponse(self._info(), headers={"cache-control": "no-store"})

    def _info(self) -> dict:
        engine, ours = self._engine, self._engine.defaults
        memory = engine.reader and engine.reader.memory
        most = min(MAX_NEW_TOKENS, engine.context)
        ready = engine.loaded.is_set() and engine.failure is None
        return {
            "name": engine.repo.name,
            "about": engine.repo.about,
            "sees": engine.sees,
            "context": engine.context,
            "ready": ready,
            "progress": None if engine.loaded.is_set() else engine.progress,
            "failure": engine.failure and without_folders(engine.failure),
            "facts": engine.facts,
            "memory": {"bytes": memory.bytes, "limit": memory.limit} if memory and memory.limit else None,
            "defaults": {
                "max_new_tokens": min(512, most),
                "temperature": ours.temperature or 1.0,
                "top_p": ours.top_p or 1.0,
                "top_k": ours.top_k or 0,
                "greedy": not ours.do_sample,
            },
            "max_new_tokens_limit": most,
            "limits": {
                "picture_bytes": MAX_PICTURE_BYTES,
                "picture_pixels": MAX_PICTURE_PIXELS,
                "pictures": MAX_PICTURES if engine.sees else 0,
                "text_characters": engine.context * CHARACTERS_A_TOKEN,
            },
            "examples": [
                {"text": each["text"], "pictures": [{"url": f"examples/{i}", "name": Path(each["files"][0]).name}]}
                for i, each in enumerate(self._examples)
            ],
            "pan_and_scan": ready and engine.pans_and_scans,
            "picture_tokens": engine.picture_tokens,
            "answer_fn": self._answer_fn,
        }

    async def example(self, request: Request) -> Response:
        """The picture of an example question."""
        number = request.path_params["number"]
        if number >= len(self._examples):
            raise HTTPException(404)
        return FileResponse(self._examples[number]["files"][0], headers=KEPT_BY_BROWSER)

    async def keep_picture(self, request: Request) -> Response:
        """Keeps an uploaded picture; the body is the file."""
        try:
            number, width, height = await self._decode(self._engine.uploads.add, await request.body())
        except PictureError as error:
            return refused(Refusal(error.status, str(error)))
        return JSONResponse({"id": number, "width": width, "height": height})

    async def picture(self, request: Request) -> Response:
        """An uploaded picture, as every browser shows it."""

        def preview() -> bytes:
            return preview_of(self._engine.uploads.open(request.path_params["number"]))

        try:
            return Response(await self._decode(preview), media_type="image/png", headers=KEPT_BY_BROWSER)
        except MissingPictures as error:
            return refused(Refusal(404, str(error)))

    async def upload(self, request: Request) -> Response:
        """Keeps the files of a form, as Gradio's clients upload them; answers with what they write as their paths."""
        paths = []
        async with request.form(max_files=MAX_PICTURES, max_fields=MAX_PICTURES) as form:
            for file in form.getlist("files"):
                if isinstance(file, str):
                    return refused(Refusal(400, "A form of files is wanted."))
                name = Path((file.filename or "").replace("\\", "/")).name[:100] or "This file"
                number = await self._decode(self._engine.uploads.add_or_remember, await file.read(), name)
                paths.append(f"{number}/{quote(name)}")
        return JSONResponse(paths)

    async def _decode(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoder, function, *arguments)

    async def login(self, request: Request) -> Response:
        try:
            headers = await check_login(await request.body(), self._access)
        except Refusal as refusal:
            return refused(refusal)
        return JSONResponse({"success": True}, headers=headers)
