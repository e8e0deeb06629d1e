"""``onelora app``, or ``python -m app`` in the checkout: serve the studio on this machine."""

import argparse
import errno
import ipaddress
import os
import socket
import tempfile
import threading
from pathlib import Path

from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.command import Parser, computes_in_threads, exits_cleanly
from onelora_vision.runtime.extras import require


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = Parser(prog="onelora app", description="Serve the studio on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--adapters", metavar="DIR", help="folder of adapters that every user sees")
    parser.add_argument(
        "--bases", nargs="+", default=[], metavar="DIR", help="folders of base models that may be chosen"
    )
    parser.add_argument(
        "--hub_bases", "--hub-bases", nargs="+", default=[], metavar="NAME",
        help="hub ids (owner/name) and timm names that may be downloaded as bases, besides well-known ones",
    )  # fmt: skip
    parser.add_argument(
        "--max_base_mb", "--max-base-mb", type=int, default=8192, help="largest base from the hub (default: 8192)"
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for these")
    parser.add_argument(
        "--max_upload_mb", "--max-upload-mb", type=int, default=64, help="largest upload (default: 64)"
    )
    parser.add_argument("--max_queue", "--max-queue", type=int, default=32, help="requests that may wait")
    parser.add_argument("--jobs", type=int, default=2, help="requests that run a model at the same time")
    parser.add_argument(
        "--output_dir", "--output-dir", default="output/app", metavar="DIR",
        help="folder for trainings and drawings that outlive the app (default: output/app)",
    )  # fmt: skip
    parser.add_argument(
        "--allow_training", "--allow-training", action="store_true",
        help="let everybody who reaches this address train; without it, only where --host is this machine's own",
    )  # fmt: skip
    parser.add_argument(
        "--max_training_mb", "--max-training-mb", type=int, default=512,
        help="largest set of images of a training (default: 512)",
    )  # fmt: skip
    parser.add_argument(
        "--max_trainings",
        "--max-trainings",
        type=int,
        default=20,
        help="trainings of a user that are kept (default: 20)",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="offer the endpoints as tools of an MCP server, on this machine alone"
    )
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")
    return parser.parse_args(argv)


def bases_of(folders: list[str]) -> dict[str, Path]:
    """Map each folder's name to its path."""
    found = {}
    for folder in folders:
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"--bases {folder}: no such folder")
        if path.resolve().name in found:
            raise InputError(f"--bases {folder}: two folders are called {path.resolve().name}")
        found[path.resolve().name] = path
    return found


def credentials(text: str | None) -> tuple[str, str] | None:
    """``user:password`` as a pair."""
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise InputError("--auth: expected USER:PASSWORD")
    return user, password


def require_free(host: str, port: int) -> None:
    """Raise if the app cannot listen on this address.

    Raises:
        InputError: no such host, not one of this machine's, or the port is in use or not allowed.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port}: must be from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host!r} is not the name or address of a machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port {port} is in use: choose another one, or stop what uses it") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host {host} is not an address of this machine (0.0.0.0 stands for all)") from None
        raise InputError(f"--host {host} --port {port}: cannot be listened on ({error.strerror})") from None


def is_own_machine(host: str) -> bool:
    """Whether only users of this machine can reach the address."""
    try:
        return ipaddress.ip_address(socket.getaddrinfo(host, None)[0][4][0].split("%")[0]).is_loopback
    except (OSError, ValueError):
        return False


def training_of(args: argparse.Namespace) -> dict:
    """The settings of `app.trainings.runs.Trainings` that follow from the flags."""
    from .trainings.images import Limits

    is_shared = not is_own_machine(args.host)
    refusal = "training is off, as this app is on a network; its operator can allow it with --allow_training"
    return {
        "folder": Path(args.output_dir).resolve() / "trainings",
        "refusal": refusal if is_shared and not args.allow_training else "",
        "is_shared": is_shared,
        "limits": Limits(bytes=args.max_training_mb << 20),
        "kept": args.max_trainings,
        "on_cpu": args.device == "cpu",
    }


def require_mcp(args: argparse.Namespace) -> None:
    """Raise if the app cannot be an MCP server, or could not be a safe one.

    Raises:
        InputError: its package is missing, or people on other machines could reach the server.
    """
    if not is_own_machine(args.host):
        raise InputError(
            f"--mcp --host {args.host}: all MCP clients share one session, so it is for this machine alone"
        )
    if args.auth:
        raise InputError("--mcp --auth: MCP clients have no password here; leave one of the two out")
    require("mcp", "mcp", "--mcp")


def serve(args: argparse.Namespace, root: Path, *, block: bool = True):
    """Serve the page, and keep the files of all its users below ``root``. Without ``block``, return the page at once.

    Raises:
        InputError: a flag has an invalid value.
    """
    for name in ("max_upload_mb", "max_base_mb", "max_queue", "jobs", "max_training_mb", "max_trainings"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}, but must be at least 1")
    auth, bases = credentials(args.auth), bases_of(args.bases)
    if args.adapters and not Path(args.adapters).is_dir():
        raise InputError(f"--adapters {args.adapters}: no such folder")
    if args.mcp:
        require_mcp(args)
    require_free(args.host, args.port)
    from onelora_vision.runtime.device import choose_device

    choose_device(args.device)
    # Before gradio is imported, which keeps it: its files lie beside the sessions', and nobody is told that it runs.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(root / "gradio"))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    from .memory import trim_regularly
    from .studio import Studio
    from .ui import CSS, THEME, build_page

    trim_regularly()
    studio = Studio(
        args.adapters,
        bases,
        max_upload=args.max_upload_mb << 20,
        root=root,
        device=args.device,
        hub_bases=args.hub_bases,
        max_base=args.max_base_mb << 20,
        training=training_of(args),
        drawings=Path(args.output_dir).resolve() / "drawings" if is_own_machine(args.host) else None,
    )
    page = build_page(studio)
    page.queue(max_size=args.max_queue, default_concurrency_limit=args.jobs)
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            auth=auth,
            max_file_size=max(args.max_upload_mb, 0 if studio.trainings.refusal else args.max_training_mb) << 20,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,  # gradio would advise flags of its own, which this command does not have
            theme=THEME,
            css=CSS,
            footer_links=["api", "settings"],
            ssr_mode=False,
            mcp_server=args.mcp,
        )
    except OSError as error:  # somebody else was faster
        raise InputError(f"--host {args.host} --port {args.port}: cannot be listened on ({one_line(error)})") from None
    if block:
        computes_in_threads()
        studio.examples.warm()
        also = f", its MCP server at {page.local_url}gradio_api/mcp/" if args.mcp else ""
        print(f"onelora_vision is at {page.local_url}{also} (Ctrl-C stops it)", flush=True)
        try:
            threading.Event().wait()  # until a signal raises
        finally:
            studio.cancel_all()
            page.close(verbose=False)
    return page


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    # a step that is just being drawn may still write there
    with tempfile.TemporaryDirectory(prefix="onelora-app-", ignore_cleanup_errors=True) as root:
        serve(parse(argv), Path(root))


if __name__ == "__main__":
    main()
