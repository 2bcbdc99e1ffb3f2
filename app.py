"""``python app.py``: the page at http://127.0.0.1:7860, with a worker beside it."""

import socket
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from isengard import logs
from isengard.cli.common import err
from isengard.errors import IsengardError
from isengard.services.examples import add_examples
from isengard.settings import ASSETS, Settings, WorkerMode
from isengard.supervisor import local_worker, stopping
from isengard.wiring import build, build_handlers

#: Longer than a program takes that is killed.
ENDING_S = 3.0


def main(
    *,
    host: Annotated[
        str | None, typer.Option(help="ISENGARD_HOST, else 127.0.0.1. 0.0.0.0 is reachable from outside.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="ISENGARD_PORT, else 7860.")] = None,
    share: Annotated[
        bool | None, typer.Option("--share", help="ISENGARD_SHARE. Also a public gradio.live address.")
    ] = None,
    auth: Annotated[
        str | None, typer.Option(help="ISENGARD_AUTH. name:password that the page asks for.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="ISENGARD_DATA_DIR, else ./data. Everything is kept in here.")
    ] = None,
    worker: Annotated[WorkerMode | None, typer.Option(help="ISENGARD_WORKER, else process.")] = None,
    device: Annotated[str | None, typer.Option(help="ISENGARD_DEVICE, else auto.")] = None,
) -> None:
    """Open the page. Ctrl-C or SIGTERM saves the running training and ends."""
    try:
        settings = Settings.load(
            host=host, port=port, share=share, auth=auth, data_dir=data_dir, worker=worker, device=device
        )
        _check_port(settings)
        logs.configure(level=settings.log_level, path=settings.logs_dir / "page.jsonl")
        serve(settings)
    except IsengardError as error:
        err.print(f"error: {error}")
        raise typer.Exit(1) from error


def serve(settings: Settings) -> None:
    """Serve the page until a signal comes."""
    settings.prepare_gradio()
    from starlette.middleware import Middleware

    from tabs.common import WEB, Page, texts
    from tabs.page import build as build_page
    from tabs.pictures import Pictures
    from tabs.serving import SameOrigin, routes
    from tabs.theme import theme

    app = build(settings)
    add_examples(
        app.characters, examples_dir=ASSETS / "characters", marker=settings.data_dir / "examples.json"
    )
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    demo = build_page(Page(app=app, machine=app.machine, pictures=pictures))
    demo.queue(api_open=False, default_concurrency_limit=4)
    credentials = settings.auth.get_secret_value().split(":", 1) if settings.auth else None
    with stopping() as stop:
        demo.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=settings.share,
            auth=None if credentials is None else (credentials[0], credentials[1]),
            prevent_thread_lock=True,
            quiet=True,
            max_threads=100,
            max_file_size="60mb",
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            show_error=False,
            mcp_server=False,
            footer_links=["settings"],
            allowed_paths=pictures.served,
            theme=theme(),
            css_paths=[WEB / "page.css"],
            head_paths=[WEB / "head.html"],
            i18n=texts(),
            app_kwargs={"middleware": [Middleware(SameOrigin)], "routes": routes(app), "openapi_url": None},
        )
        addresses = " and ".join(
            str(address).rstrip("/") for address in (demo.local_url, demo.share_url) if address
        )
        err.print(f"Isengard is at {addresses}")
        with local_worker(settings, app.queue, partial(build_handlers, settings, app)):
            stop.wait()
        app.ai_toolkit.cancel()
        app.ai_toolkit.wait(ENDING_S)
        app.model_tasks.end(ENDING_S)
        demo.close()


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise IsengardError(
                f"port {settings.port} at {settings.host} cannot be opened ({error.strerror}): is Isengard running "
                f"already? Else choose another: --port {settings.port + 1}"
            ) from error


if __name__ == "__main__":
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
