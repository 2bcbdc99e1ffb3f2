"""``python app.py``: the page at http://127.0.0.1:7860, with a worker beside it."""

import logging
import socket
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Annotated

import typer

from isengard import logs
from isengard.cli.common import err
from isengard.equipment import equip
from isengard.errors import IsengardError, LoginMissing
from isengard.files import disk_full_as_error
from isengard.services.examples import add_examples
from isengard.services.exposure import check_exposure
from isengard.services.pod import check_stop
from isengard.settings import ASSETS, Settings, WorkerMode
from isengard.supervisor import local_worker, stopping
from isengard.wiring import Application, build, check_job_list, keeping_job_list, open_logins

if TYPE_CHECKING:
    from gradio import Blocks  # takes seconds to import

log = logging.getLogger(__name__)

#: Pages that Gradio remembers what they show; each takes 0.2 MB, and any call from elsewhere makes one more.
SESSIONS = 1000
#: Longer than a program takes that is killed.
ENDING_S = 3.0
#: With it the page has ended 10 seconds after SIGTERM, when most machines kill it: a worker gets 8 of them for saving.
CLOSING_S = 6.0


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
        str | None,
        typer.Option(
            help="ISENGARD_AUTH. Who may use the page: name:password, several separated by commas. Instead of a password"
            " also the hash that `python -m isengard password` makes."
        ),
    ] = None,
    no_auth: Annotated[
        bool | None,
        typer.Option(
            "--no-auth", help="ISENGARD_NO_AUTH. Everybody may use the page, even at a public address."
        ),
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
            host=host,
            port=port,
            share=share,
            auth=auth,
            no_auth=no_auth,
            data_dir=data_dir,
            worker=worker,
            device=device,
        )
        warning = check_exposure(settings)
        _check_port(settings)
        logs.configure(
            level=settings.log_level, path=settings.log_file("page"), hidden=settings.secret_values()
        )
        if warning:
            log.info("the page is open to everybody who reaches it", extra={"host": settings.host})
            err.print(f"warning: {warning}")
        serve(settings)
    except IsengardError as error:
        err.print(f"error: {error}")
        if isinstance(error, LoginMissing):  # written to the terminal only, and kept nowhere
            err.print(f"A login with a password made just now:\nISENGARD_AUTH=isengard:{token_urlsafe(18)}")
        raise typer.Exit(1) from error


def serve(settings: Settings) -> None:
    """Serve the page until a signal comes."""
    # First: what is wrong with the job list is said before seconds of imports.
    app = build(settings.without_login())
    check_job_list(settings)
    app.volume.check()
    check_stop(settings)
    if settings.quota is not None:
        app.storage.refresh()  # a first count may take long; what is asked of the quota waits for it
    logins = open_logins(settings)
    settings = settings.without_login()
    settings.prepare_gradio()
    from tabs.common import WEB, Page, texts
    from tabs.http.bodies import FILE_BYTES
    from tabs.http.economy import economise
    from tabs.http.patience import Impatient
    from tabs.http.stack import middleware, routes
    from tabs.page import build as build_page
    from tabs.pictures import Pictures
    from tabs.theme import theme

    add_examples(
        app.characters, examples_dir=ASSETS / "characters", marker=settings.data_dir / "examples.json"
    )
    pictures = Pictures(folder=settings.pictures_dir, gallery=settings.images_dir)
    with disk_full_as_error(settings.cache_dir):  # Gradio makes folders in it
        demo = build_page(Page(app=app, machine=app.machine, pictures=pictures, login=logins is not None))
    demo.queue(api_open=False, default_concurrency_limit=4, max_size=1000)
    economise(demo)
    ours = routes(app)
    with stopping() as stop:
        demo.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=settings.share,
            prevent_thread_lock=True,
            quiet=True,
            max_threads=100,
            max_file_size=FILE_BYTES,
            state_session_capacity=SESSIONS,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            show_error=False,
            mcp_server=False,
            num_workers=0,  # they would answer at ports of their own, without our middleware
            footer_links=["settings"],
            theme=theme(),
            css_paths=[WEB / "page.css"],
            head_paths=[WEB / "head.html"],
            i18n=texts(),
            app_kwargs={
                "middleware": middleware(app, ours=ours, logins=logins),
                "routes": ours,
                "openapi_url": None,
            },
        )
        demo.server.config.http_protocol_class = Impatient  # Gradio lets nobody choose it
        addresses = " and ".join(
            str(address).rstrip("/") for address in (demo.local_url, demo.share_url) if address
        )
        err.print(f"Isengard is at {addresses}")
        with (
            keeping_job_list(settings),
            app.idle.watching() if settings.is_paid_by_the_hour else nullcontext(),
            local_worker(settings, app.queue, partial(equip, settings, app)),
        ):
            stop.wait()
            ending = threading.Thread(target=_end, args=(app, demo), name="ending", daemon=True)
            ending.start()  # while the worker saves
        ending.join(CLOSING_S)


def _end(app: Application, demo: "Blocks") -> None:
    """Kill the programs that run beside the page, and close it. Gradio waits some seconds for pages that are open."""
    app.ai_toolkit.cancel()
    app.model_tasks.end(ENDING_S)
    app.ai_toolkit.wait(ENDING_S)
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
    logs.conceal_output()
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(main)
    cli()
