"""The page itself: Gradio's components around the plain functions beside this file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from metricgold.demo.browser import cloud_page, depth_layers
from metricgold.demo.results import (
    CAMERAS,
    FROM_FILE,
    MOST_MEMBERS,
    STEPS,
    Backend,
    Point,
    Result,
    Settings,
    forget_packs,
    measured,
    pack,
    points_of,
    predict,
)
from metricgold.demo.uploads import check_upload, read_upload
from metricgold.errors import UserError

logger = logging.getLogger(__name__)

TITLE = "MetricGold"
ABOUT = "Metric depth from a single picture, by latent diffusion: drop one, read metres."
HOW_TO_MEASURE = "Point at the picture to read depth; click two points to measure between them."
WAITING = 16
"""Visitors in the queue; one more is asked to come again."""

FORGET_AFTER_S = 3600
_NO_FILE = (gr.update(value=None, visible=False), "")
NO_POINTS = '<p class="cloud-empty">Points that can be turned appear here.</p>'


def picture_file() -> gr.Image:
    """A picture's own file, as it was uploaded: nothing is decoded before its size is judged."""
    made = gr.Image(
        type="filepath",
        label="Picture",
        sources=["upload", "clipboard"],
        height=280,
        elem_id="picture",
    )
    # On the object, for Gradio writes a .pyi file beside the source of every subclass.
    made.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return made


@dataclass(frozen=True)
class Server:
    """What the handlers of all visitors share; ``folder`` is the only one they write to."""

    backends: Sequence[Backend]
    folder: Path
    max_megapixels: float

    def check(self, path: str | None) -> tuple[str, str]:
        """What is wrong with a picture just dropped, else what its file says of the camera; and no
        more of what was wrong with the one before."""
        if path is None:
            return "", ""
        try:
            fov_deg = check_upload(Path(path), self.max_megapixels)
        except UserError as error:
            return _problem(str(error)), ""
        if fov_deg is None:
            said = "The file says nothing of its camera; set it below if you know it."
        else:
            said = f"The file states a vertical field of view of {fov_deg:.1f}° (EXIF)."
        return _told([said]), ""

    def predict(
        self,
        path: str | None,
        camera: str,
        value: float | None,
        steps: int,
        ensemble: float,
        backend: str,
        before: Result | None,
        points: list[Point],
    ) -> tuple[Any, ...]:
        """Result, layers, cloud, sentences, measurement, points; nothing but a sentence if bad."""
        try:
            if path is None:
                raise UserError("Drop a picture first, or take an example.")
            chosen = next(b for b in self.backends if b.name == backend)
            settings = Settings(int(steps), int(ensemble), camera, value)
            result = predict(chosen, read_upload(Path(path), self.max_megapixels), settings)
            layers, cloud = depth_layers(result), cloud_page(result)
        except UserError as error:
            return _nothing(_problem(str(error)))
        except Exception as error:
            logger.exception("a prediction failed")
            name = type(error).__name__
            return _nothing(_problem(f"The model failed ({name}); the server's log says more."))
        kept = points if before is not None and before.digest == result.digest else []
        return (
            result,
            layers,
            cloud,
            _told(result.told),
            _measured(result, kept),
            kept,
            *_NO_FILE,
            "",
        )

    def measure(self, result: Result | None, event: gr.EventData) -> tuple[str, list[Point]]:
        """What the points that a browser sends tell."""
        if result is None:
            return _problem("This page was left for long; estimate the depth again."), []
        try:
            points = points_of(event._data)
            return _measured(result, points), points
        except UserError as error:
            return _problem(str(error)), []

    def pack(self, result: Result | None) -> tuple[Any, str]:
        """The zip with everything, and what is not in it."""
        if result is None:
            return gr.update(visible=False), _problem(
                "There is no depth yet to download; estimate it first."
            )
        forget_packs(self.folder, FORGET_AFTER_S)
        path, left_out = pack(result, self.folder)
        return gr.update(value=str(path), visible=True), _told(left_out)


def build(server: Server, examples: Sequence[Path], steps: int) -> gr.Blocks:
    """The page; ``steps`` is what the checkpoint was trained for."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(FORGET_AFTER_S, FORGET_AFTER_S)
    ) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{ABOUT}</p>", elem_id="title")
        result = gr.State(None, time_to_live=FORGET_AFTER_S)
        points = gr.State([], time_to_live=FORGET_AFTER_S)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = picture_file()
                gr.Examples([[str(p)] for p in examples], [picture], label="Examples")
                said = gr.HTML(elem_id="said")
                chosen = _settings(server.backends, steps)
                go = gr.Button("Estimate depth", variant="primary", elem_id="go")
            with gr.Column(scale=3, min_width=320):
                problem = gr.HTML(elem_id="problem")
                view = gr.HTML(
                    value=None,
                    html_template=_text("depth_view.html"),
                    js_on_load=_text("depth_view.js"),
                    apply_default_css=False,
                    elem_id="depth",
                )
                distance = gr.HTML(_told([HOW_TO_MEASURE]), elem_id="measured")
                told = gr.HTML(elem_id="told")
                cloud = gr.HTML(NO_POINTS, elem_id="cloud", apply_default_css=False)
                everything = gr.Button("Pack every format for download", elem_id="pack")
                file = gr.File(
                    label="Everything in one zip", interactive=False, visible=False, elem_id="file"
                )
                left_out = gr.HTML(elem_id="left-out")
        shared: dict[str, Any] = {"api_visibility": "private"}
        work = shared | {"concurrency_id": "model", "concurrency_limit": 1}
        picture.change(server.check, [picture], [said, problem], show_progress="hidden", **shared)
        go.click(
            server.predict,
            [picture, *chosen, result, points],
            [result, view, cloud, told, distance, points, file, left_out, problem],
            show_progress_on=[view],
            **work,
        )
        everything.click(server.pack, [result], [file, left_out], show_progress_on=[file], **work)
        view.measure(
            server.measure,
            [result],
            [distance, points],
            queue=False,
            trigger_mode="multiple",
            show_progress="hidden",
            **shared,
        )
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    page._queue.sleep_when_free = 0.05  # Gradio looks a thousand times a second: 9 % of a core
    return page


def theme() -> gr.themes.Base:
    """The system's own fonts: nothing is fetched from elsewhere."""
    sans = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    return gr.themes.Default(
        primary_hue="orange", neutral_hue="zinc", font=sans, font_mono=mono, radius_size="sm"
    )


def style() -> str:
    """CSS of the page."""
    return _text("page.css")


def _settings(backends: Sequence[Backend], steps: int) -> list[Any]:
    """Camera, its value, steps, ensemble size and back-end."""
    with gr.Group():
        camera = gr.Radio(list(CAMERAS), value=FROM_FILE, label="Camera", elem_id="camera")
        value = gr.Number(
            None,
            label="Focal length (px of the file) or field of view (°)",
            visible=False,
            elem_id="value",
        )
        choices = sorted({*STEPS})
        start = steps if steps in choices else choices[-1]
        number = gr.Radio(
            choices,
            value=start,
            label="Steps",
            info=f"The model was trained for {'one step' if steps == 1 else f'{steps} steps'}.",
            elem_id="steps",
        )
        ensemble = gr.Slider(
            1,
            MOST_MEMBERS,
            value=1,
            step=1,
            label="Ensemble size",
            info="Two or more give an uncertainty; with one step, two at most.",
            elem_id="ensemble",
        )
        names = [b.name for b in backends]
        backend = gr.Radio(
            names, value=names[0], label="Back-end", elem_id="backend", visible=len(names) > 1
        )
    camera.change(
        lambda chosen: gr.update(visible=chosen != FROM_FILE, label=chosen),
        [camera],
        [value],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    return [camera, value, number, ensemble, backend]


def _nothing(problem: str) -> tuple[Any, ...]:
    """In place of results, in the order of :meth:`Server.predict`."""
    return None, None, NO_POINTS, "", _told([HOW_TO_MEASURE]), [], *_NO_FILE, problem


def _problem(sentence: str) -> str:
    return f'<p class="problem" role="alert">{escape(sentence)}</p>'


def _told(sentences: Sequence[str]) -> str:
    lines = "".join(f"<p>{escape(s)}</p>" for s in sentences)
    return f'<div class="told">{lines}</div>' if lines else ""


def _measured(result: Result, points: Sequence[Point]) -> str:
    if not points:
        return _told([HOW_TO_MEASURE])
    lines = measured(result.prediction, points)
    shown = [
        f'<p class="{"distance" if s.startswith("Distance") else "point"}">{escape(s)}</p>'
        for s in lines
    ]
    return f'<div class="measured" aria-live="polite">{"".join(shown)}</div>'


def _text(name: str) -> str:
    return resources.files("metricgold.demo").joinpath(name).read_text(encoding="utf-8")
